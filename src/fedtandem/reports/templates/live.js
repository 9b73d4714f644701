// Puts the newest view in place of the old one; says so where the watching program has gone.
const place = document.getElementById("live");
const link = document.getElementById("link");
const said = link.textContent;
let shown = null;

async function refresh() {
  try {
    const reply = await fetch("/view", { cache: "no-store" });
    if (!reply.ok) throw new Error(String(reply.status));
    const text = await reply.text();
    if (text !== shown) place.innerHTML = shown = text;
    link.textContent = said;
  } catch {
    link.textContent = "No answer from `fedtandem watch`: what stands here is old.";
  }
  setTimeout(refresh, 2000);
}
setTimeout(refresh, 2000);
