-- Post basic transfers, all of them or none. See basic_posting.py. (This is a statement, not a function.)
--
-- The arrays a_… have an element for each account, and the arrays t_… and k_… one for each transfer. t_source and
-- t_target are the positions of its accounts in a_id, from 1. An empty array stands for NULLs only. The arrays r_… are
-- the keys and refusals of refused requests. The arrays p_… have an element for each account on which a predicted
-- refusal depends: its revision, and the range of its balance. If such an account isn't in this state, the statement
-- locks and writes nothing. If it posts nothing for another reason, it returns the accounts.
WITH wait AS MATERIALIZED (
    -- before the locks are requested; until the end of the transaction, so also for the wait for a key
    SELECT set_config('lock_timeout', :lock_timeout, true) IS NOT NULL AS is_limited
), prediction AS MATERIALIZED (
    -- No lock is needed: it is enough if the refusals are right when the statement begins. A trigger increments the
    -- revision at each change that creates no entry, such as one of the state, a limit or a hold.
    SELECT count(*) = cardinality(:p_id) AS is_prediction_right
    FROM unnest(:p_id, :p_revision, :p_lowest_balance, :p_highest_balance)
        AS known (id, revision, lowest_balance, highest_balance)
    JOIN accounts AS account ON account.id = known.id AND account.revision = known.revision
        AND account.balance BETWEEN known.lowest_balance AND known.highest_balance
), locked AS MATERIALIZED (
    -- In key order, so that two transactions can't deadlock. The debited account of another customer isn't locked: if
    -- the statement waited for it, the time would show that it exists.
    SELECT position, lowest_change, highest_change, needed_currency, account.id, account.user_id, account.currency,
        account.balance, account.held, account.allows_negative, account.overdraft_limit, account.balance_limit,
        account.state, account.entry_count, account.revision, account.updated_at
    FROM unnest(:a_id, :a_lowest_change, :a_highest_change, :a_owner, :a_currency) WITH ORDINALITY
        AS needed (id, lowest_change, highest_change, owner, needed_currency, position)
    JOIN accounts AS account ON account.id = needed.id
    WHERE (SELECT is_limited FROM wait) AND (SELECT is_prediction_right FROM prediction)
        AND (needed.owner IS NULL OR needed.owner = account.user_id)
    ORDER BY account.id FOR NO KEY UPDATE OF account
), checked AS MATERIALIZED (
    SELECT *, state = 'open' AND currency = coalesce(needed_currency, currency)
        -- no sum below is out of range: `plan_basic_posting` limits the changes to 2^62, too
        AND balance - held >= -4611686018427387904 AND balance < 4611686018427387904
        -- held may include an expired hold: then the requests are decided under locks, after the hold was voided
        AND (allows_negative OR balance - held + lowest_change >= -overdraft_limit)
        AND (balance_limit IS NULL OR balance + highest_change <= balance_limit)
        -- false if the clock was set back: no entry may be older than the one before it
        AND updated_at <= clock_timestamp() AS allows_all
    FROM locked ORDER BY position
), states AS MATERIALIZED (
    -- the time is read after the last lock
    SELECT clock_timestamp() AS at, count(*) AS found, array_agg(position) FILTER (WHERE allows_all) AS allowing,
        array_agg(balance) AS balances, array_agg(entry_count) AS entry_counts, array_agg(user_id) AS owners,
        array_agg(currency) AS currencies, min(currency) AS first_currency, max(currency) AS last_currency
    FROM checked
), decision AS MATERIALIZED (
    SELECT *, found = cardinality(:a_id) AND coalesce(cardinality(allowing), 0) = found AND (
        first_currency = last_currency OR NOT EXISTS (
            SELECT FROM unnest(:t_source, :t_target) AS pair (source, target)
            WHERE currencies[source] <> currencies[target]
        )
    ) AND is_prediction_right AS is_accepted
    FROM states CROSS JOIN prediction
), accepted AS MATERIALIZED (
    -- without the arrays of the accounts: they would be copied for each transfer
    SELECT input.*, decision.at, (:a_id)[source] AS from_account_id, (:a_id)[target] AS to_account_id,
        entry_counts[source] + source_entry AS from_entry_number,
        entry_counts[target] + target_entry AS to_entry_number,
        CASE WHEN first_currency = last_currency THEN first_currency ELSE currencies[source] END AS currency
    FROM decision CROSS JOIN unnest(
        :t_id, :t_source, :t_source_entry, :t_target, :t_target_entry, :t_amount, :t_description, :t_metadata,
        :t_effective_at, :t_group_id, :t_posted_by, :k_scope, :k_key, :k_fingerprint
    ) AS input (
        id, source, source_entry, target, target_entry, amount, description, metadata,
        effective_at, group_id, posted_by, scope, key, fingerprint
    )
    WHERE is_accepted
), new_transfers AS (
    INSERT INTO transfers (
        id, from_account_id, from_entry_number, to_account_id, to_entry_number, amount, currency,
        description, metadata, effective_at, group_id, posted_by, created_at
    )
    SELECT id, from_account_id, from_entry_number, to_account_id, to_entry_number, amount, currency,
        description, metadata::jsonb, coalesce(effective_at, at), group_id, posted_by, at
    FROM accepted
), new_keys AS (
    INSERT INTO idempotency_keys (scope, key, fingerprint, transfer_id, refusal, answer, created_at)
    SELECT * FROM (
        SELECT coalesce(scope, '') AS scope, key, fingerprint, id, NULL, 'posted', at FROM accepted WHERE key IS NOT NULL
        UNION ALL
        SELECT coalesce(scope, ''), key, fingerprint, NULL, refusal, 'refused', at
        FROM decision CROSS JOIN unnest(:r_scope, :r_key, :r_fingerprint, :r_refusal)
            AS refused (scope, key, fingerprint, refusal)
        WHERE is_accepted
    ) AS answered
    -- The accounts of refused requests aren't locked, so two transactions may write the same keys. In the order of
    -- `shop.ledger.writing` they can't deadlock.
    ORDER BY scope COLLATE "C", key COLLATE "C"
)
SELECT coalesce(is_accepted, false) AS is_posted, is_prediction_right, at, allowing, balances, entry_counts,
    owners, currencies, declined.*,
    -- if nothing was written, the transaction has only locks, and its end need not wait for the disk
    CASE WHEN is_accepted THEN NULL ELSE set_config('synchronous_commit', 'off', true) END
FROM decision CROSS JOIN LATERAL (
    SELECT array_agg(id) AS id, array_agg(held) AS held, array_agg(allows_negative) AS allows_negative,
        array_agg(overdraft_limit) AS overdraft_limit, array_agg(balance_limit) AS balance_limit,
        array_agg(state) AS state, array_agg(revision) AS revision
    FROM checked WHERE is_accepted IS NOT TRUE
) AS declined
