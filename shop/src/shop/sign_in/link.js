// The token is in the fragment, which the browser sends to no server. It is removed from the history.
const token = new URLSearchParams(location.hash.slice(1)).get("token");
if (token) {
  document.getElementById("token").value = token;
  document.getElementById("token-field").hidden = true;
  history.replaceState(null, "", location.pathname);
}
