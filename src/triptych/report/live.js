// Loads the page again when its server has another one; the browser keeps the place to which one has scrolled.
(() => {
  const away = document.getElementById("away");
  const version = document.documentElement.dataset.version;
  const look = async () => {
    try {
      const reply = await fetch(location.href, {
        headers: { "If-None-Match": `"${version}"` }, cache: "no-store", signal: AbortSignal.timeout(20000),
      });
      away.hidden = reply.ok || reply.status === 304;
      if (reply.ok) location.reload();
    } catch { away.hidden = false; }
  };
  setInterval(look, 5000);
})();
