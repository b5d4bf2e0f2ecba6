// On /docs: renews the session while the page is open, and shows whether somebody is signed in.
{
  const base = new URL("./", document.currentScript.src);
  const link = document.createElement("a");
  link.id = "sign-in";
  link.href = `${new URL("../sign-in", base)}?next=${encodeURIComponent(location.pathname)}`;
  link.style.cssText = "position: absolute; top: 1rem; right: 1.5rem; font: 1rem sans-serif; z-index: 1";
  document.body.prepend(link);
  const renew = async () => {
    const response = await fetch(new URL("refresh", base), { method: "POST" });
    const session = response.ok ? await response.json() : { is_signed_in: false };
    link.textContent = session.is_signed_in ? `Signed in as ${session.role}` : "Sign in";
    if (session.is_signed_in) setTimeout(renew, session.expires_in * 500);
  };
  renew();
}
