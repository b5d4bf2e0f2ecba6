-- The policies and rights of each table. No role of the service owns a table.

ALTER TABLE accounts ENABLE ROW LEVEL SECURITY;
ALTER TABLE accounts FORCE ROW LEVEL SECURITY;
CREATE POLICY customers_read ON accounts FOR SELECT TO shop_customer USING (user_id = CAST(NULLIF(current_setting('app.user_id', true), '') AS uuid));
CREATE POLICY customers_insert ON accounts FOR INSERT TO shop_customer WITH CHECK (user_id = CAST(NULLIF(current_setting('app.user_id', true), '') AS uuid) AND purpose IS NULL AND NOT allows_negative AND overdraft_limit = 0 AND balance_limit IS NULL AND state = 'open');
CREATE POLICY customers_update ON accounts FOR UPDATE TO shop_customer USING (user_id = CAST(NULLIF(current_setting('app.user_id', true), '') AS uuid));
CREATE POLICY staff ON accounts TO shop_staff USING (true);
CREATE POLICY system ON accounts TO shop_system USING (true);
GRANT SELECT, INSERT ON accounts TO shop_customer;
GRANT UPDATE (name, metadata, updated_at) ON accounts TO shop_customer;
GRANT SELECT, INSERT ON accounts TO shop_staff;
GRANT UPDATE (name, metadata, state, overdraft_limit, balance_limit, updated_at) ON accounts TO shop_staff;
GRANT SELECT, INSERT ON accounts TO shop_system;
GRANT UPDATE (held, updated_at) ON accounts TO shop_system;

ALTER TABLE api_keys ENABLE ROW LEVEL SECURITY;
ALTER TABLE api_keys FORCE ROW LEVEL SECURITY;
CREATE POLICY customers_read ON api_keys FOR SELECT TO shop_customer USING (user_id = CAST(NULLIF(current_setting('app.user_id', true), '') AS uuid));
CREATE POLICY customers_insert ON api_keys FOR INSERT TO shop_customer WITH CHECK (user_id = CAST(NULLIF(current_setting('app.user_id', true), '') AS uuid));
CREATE POLICY customers_update ON api_keys FOR UPDATE TO shop_customer USING (user_id = CAST(NULLIF(current_setting('app.user_id', true), '') AS uuid));
CREATE POLICY staff ON api_keys TO shop_staff USING (true);
CREATE POLICY system ON api_keys TO shop_system USING (true);
GRANT SELECT (id, user_id, name, prefix, scopes, created_at, expires_at, last_used_at, revoked_at) ON api_keys TO shop_customer;
GRANT INSERT ON api_keys TO shop_customer;
GRANT UPDATE (revoked_at) ON api_keys TO shop_customer;
GRANT SELECT (id, user_id, name, prefix, scopes, created_at, expires_at, last_used_at, revoked_at) ON api_keys TO shop_staff;
GRANT INSERT ON api_keys TO shop_staff;
GRANT UPDATE (revoked_at) ON api_keys TO shop_staff;
GRANT SELECT, DELETE ON api_keys TO shop_system;
GRANT UPDATE (last_used_at, revoked_at) ON api_keys TO shop_system;

ALTER TABLE audit_events ENABLE ROW LEVEL SECURITY;
ALTER TABLE audit_events FORCE ROW LEVEL SECURITY;
CREATE POLICY customers_insert ON audit_events FOR INSERT TO shop_customer WITH CHECK (actor_user_id = CAST(NULLIF(current_setting('app.user_id', true), '') AS uuid) AND actor_role = 'customer');
CREATE POLICY staff ON audit_events TO shop_staff USING (true);
CREATE POLICY system ON audit_events TO shop_system USING (true);
GRANT INSERT ON audit_events TO shop_customer;
GRANT SELECT, INSERT ON audit_events TO shop_staff;
GRANT SELECT, INSERT ON audit_events TO shop_system;

ALTER TABLE credentials ENABLE ROW LEVEL SECURITY;
ALTER TABLE credentials FORCE ROW LEVEL SECURITY;
CREATE POLICY system ON credentials TO shop_system USING (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON credentials TO shop_system;

ALTER TABLE entries ENABLE ROW LEVEL SECURITY;
ALTER TABLE entries FORCE ROW LEVEL SECURITY;
CREATE POLICY customers_read ON entries FOR SELECT TO shop_customer USING (account_id = ANY (ARRAY(SELECT id FROM accounts WHERE user_id = CAST(NULLIF(current_setting('app.user_id', true), '') AS uuid))));
CREATE POLICY staff ON entries TO shop_staff USING (true);
CREATE POLICY system ON entries TO shop_system USING (true);
GRANT SELECT ON entries TO shop_customer;
GRANT SELECT ON entries TO shop_staff;
GRANT SELECT ON entries TO shop_system;

ALTER TABLE idempotency_keys ENABLE ROW LEVEL SECURITY;
ALTER TABLE idempotency_keys FORCE ROW LEVEL SECURITY;
CREATE POLICY customers_read ON idempotency_keys FOR SELECT TO shop_customer USING (scope = 'user:' || NULLIF(current_setting('app.user_id', true), ''));
CREATE POLICY customers_insert ON idempotency_keys FOR INSERT TO shop_customer WITH CHECK (scope = 'user:' || NULLIF(current_setting('app.user_id', true), '') AND answer = 'opened');
CREATE POLICY customers_delete ON idempotency_keys FOR DELETE TO shop_customer USING (scope = 'user:' || NULLIF(current_setting('app.user_id', true), '') AND answer = 'opened');
CREATE POLICY staff ON idempotency_keys TO shop_staff USING (true);
CREATE POLICY system ON idempotency_keys TO shop_system USING (true);
GRANT SELECT, INSERT, DELETE ON idempotency_keys TO shop_customer;
GRANT SELECT, INSERT, DELETE ON idempotency_keys TO shop_staff;
GRANT SELECT, INSERT, DELETE ON idempotency_keys TO shop_system;
GRANT UPDATE (created_at) ON idempotency_keys TO shop_system;

ALTER TABLE idempotent_requests ENABLE ROW LEVEL SECURITY;
ALTER TABLE idempotent_requests FORCE ROW LEVEL SECURITY;
CREATE POLICY customers_read ON idempotent_requests FOR SELECT TO shop_customer USING (scope = 'user:' || NULLIF(current_setting('app.user_id', true), ''));
CREATE POLICY customers_insert ON idempotent_requests FOR INSERT TO shop_customer WITH CHECK (scope = 'user:' || NULLIF(current_setting('app.user_id', true), ''));
CREATE POLICY customers_update ON idempotent_requests FOR UPDATE TO shop_customer USING (scope = 'user:' || NULLIF(current_setting('app.user_id', true), ''));
CREATE POLICY staff ON idempotent_requests TO shop_staff USING (true);
CREATE POLICY system ON idempotent_requests TO shop_system USING (true);
GRANT SELECT, INSERT ON idempotent_requests TO shop_customer;
GRANT UPDATE (fingerprint, status, headers, body) ON idempotent_requests TO shop_customer;
GRANT SELECT, INSERT ON idempotent_requests TO shop_staff;
GRANT UPDATE (fingerprint, status, headers, body) ON idempotent_requests TO shop_staff;
GRANT SELECT, INSERT, DELETE ON idempotent_requests TO shop_system;
GRANT UPDATE (fingerprint, status, headers, body) ON idempotent_requests TO shop_system;

ALTER TABLE one_time_tokens ENABLE ROW LEVEL SECURITY;
ALTER TABLE one_time_tokens FORCE ROW LEVEL SECURITY;
CREATE POLICY system ON one_time_tokens TO shop_system USING (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON one_time_tokens TO shop_system;

ALTER TABLE order_items ENABLE ROW LEVEL SECURITY;
ALTER TABLE order_items FORCE ROW LEVEL SECURITY;
CREATE POLICY customers_read ON order_items FOR SELECT TO shop_customer USING (EXISTS (SELECT FROM orders WHERE orders.id = order_items.order_id AND orders.user_id = CAST(NULLIF(current_setting('app.user_id', true), '') AS uuid)));
CREATE POLICY customers_insert ON order_items FOR INSERT TO shop_customer WITH CHECK (EXISTS (SELECT FROM orders WHERE orders.id = order_items.order_id AND orders.user_id = CAST(NULLIF(current_setting('app.user_id', true), '') AS uuid) AND orders.status = 'pending'));
CREATE POLICY staff ON order_items TO shop_staff USING (true);
CREATE POLICY system ON order_items TO shop_system USING (true);
GRANT SELECT, INSERT ON order_items TO shop_customer;
GRANT SELECT, INSERT ON order_items TO shop_staff;
GRANT SELECT ON order_items TO shop_system;

ALTER TABLE orders ENABLE ROW LEVEL SECURITY;
ALTER TABLE orders FORCE ROW LEVEL SECURITY;
CREATE POLICY customers_read ON orders FOR SELECT TO shop_customer USING (user_id = CAST(NULLIF(current_setting('app.user_id', true), '') AS uuid));
CREATE POLICY customers_insert ON orders FOR INSERT TO shop_customer WITH CHECK (user_id = CAST(NULLIF(current_setting('app.user_id', true), '') AS uuid) AND status = 'pending' AND transfer_id IS NULL AND cancels_id IS NULL AND reference IS NULL);
CREATE POLICY staff ON orders TO shop_staff USING (true);
CREATE POLICY system ON orders TO shop_system USING (true);
GRANT SELECT, INSERT ON orders TO shop_customer;
GRANT SELECT, INSERT ON orders TO shop_staff;
GRANT UPDATE (status, updated_at, version) ON orders TO shop_staff;
GRANT SELECT ON orders TO shop_system;
GRANT UPDATE (status, transfer_id, updated_at, version) ON orders TO shop_system;

ALTER TABLE pending_transfers ENABLE ROW LEVEL SECURITY;
ALTER TABLE pending_transfers FORCE ROW LEVEL SECURITY;
CREATE POLICY customers_read ON pending_transfers FOR SELECT TO shop_customer USING (from_account_id = ANY (ARRAY(SELECT id FROM accounts WHERE user_id = CAST(NULLIF(current_setting('app.user_id', true), '') AS uuid))) OR to_account_id = ANY (ARRAY(SELECT id FROM accounts WHERE user_id = CAST(NULLIF(current_setting('app.user_id', true), '') AS uuid))));
CREATE POLICY staff ON pending_transfers TO shop_staff USING (true);
CREATE POLICY system ON pending_transfers TO shop_system USING (true);
GRANT SELECT ON pending_transfers TO shop_customer;
GRANT SELECT ON pending_transfers TO shop_staff;
GRANT SELECT, INSERT ON pending_transfers TO shop_system;
GRANT UPDATE (state, settled_at, settled_by) ON pending_transfers TO shop_system;

ALTER TABLE refresh_tokens ENABLE ROW LEVEL SECURITY;
ALTER TABLE refresh_tokens FORCE ROW LEVEL SECURITY;
CREATE POLICY system ON refresh_tokens TO shop_system USING (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON refresh_tokens TO shop_system;

ALTER TABLE seals ENABLE ROW LEVEL SECURITY;
ALTER TABLE seals FORCE ROW LEVEL SECURITY;
CREATE POLICY staff ON seals TO shop_staff USING (true);
CREATE POLICY system ON seals TO shop_system USING (true);
GRANT SELECT ON seals TO shop_staff;
GRANT SELECT ON seals TO shop_system;

ALTER TABLE sign_in_sessions ENABLE ROW LEVEL SECURITY;
ALTER TABLE sign_in_sessions FORCE ROW LEVEL SECURITY;
CREATE POLICY system ON sign_in_sessions TO shop_system USING (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON sign_in_sessions TO shop_system;

ALTER TABLE sign_in_throttles ENABLE ROW LEVEL SECURITY;
ALTER TABLE sign_in_throttles FORCE ROW LEVEL SECURITY;
CREATE POLICY system ON sign_in_throttles TO shop_system USING (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON sign_in_throttles TO shop_system;

ALTER TABLE totp_devices ENABLE ROW LEVEL SECURITY;
ALTER TABLE totp_devices FORCE ROW LEVEL SECURITY;
CREATE POLICY system ON totp_devices TO shop_system USING (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON totp_devices TO shop_system;

ALTER TABLE transfers ENABLE ROW LEVEL SECURITY;
ALTER TABLE transfers FORCE ROW LEVEL SECURITY;
CREATE POLICY customers_read ON transfers FOR SELECT TO shop_customer USING (from_account_id = ANY (ARRAY(SELECT id FROM accounts WHERE user_id = CAST(NULLIF(current_setting('app.user_id', true), '') AS uuid))) OR to_account_id = ANY (ARRAY(SELECT id FROM accounts WHERE user_id = CAST(NULLIF(current_setting('app.user_id', true), '') AS uuid))));
CREATE POLICY staff ON transfers TO shop_staff USING (true);
CREATE POLICY system ON transfers TO shop_system USING (true);
GRANT SELECT ON transfers TO shop_customer;
GRANT SELECT ON transfers TO shop_staff;
GRANT SELECT, INSERT ON transfers TO shop_system;

ALTER TABLE users ENABLE ROW LEVEL SECURITY;
ALTER TABLE users FORCE ROW LEVEL SECURITY;
CREATE POLICY customers_read ON users FOR SELECT TO shop_customer USING (id = CAST(NULLIF(current_setting('app.user_id', true), '') AS uuid));
CREATE POLICY customers_update ON users FOR UPDATE TO shop_customer USING (id = CAST(NULLIF(current_setting('app.user_id', true), '') AS uuid));
CREATE POLICY staff ON users TO shop_staff USING (true);
CREATE POLICY system ON users TO shop_system USING (true);
GRANT SELECT ON users TO shop_customer;
GRANT UPDATE (name, country, updated_at, version) ON users TO shop_customer;
GRANT SELECT, INSERT, DELETE ON users TO shop_staff;
GRANT UPDATE (email, name, country, updated_at, version) ON users TO shop_staff;
GRANT SELECT, INSERT, UPDATE ON users TO shop_system;
