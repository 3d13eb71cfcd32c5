// Favorites and rejects of a run: kept by the browser for this run, by the images' own hashes, and read out as commands.
// Knows marks and the tray; what a candidate is called and looks like it is told.
"use strict";
const markings = (tray, { key, candidates, folder, show, changed }) => {
  const find = (name) => tray.querySelector(`[data-part="${name}"]`);
  const marks = new Map(); // from a candidate's index to "favorite" or "reject"

  const read = () => {
    let kept = {};
    try {
      kept = JSON.parse(localStorage.getItem(key) ?? "{}");
    } catch {} // a browser that keeps nothing for pages from the disk: the marks live as long as the page
    const indices = new Map(Object.entries(candidates).map(([index, { mark }]) => [mark, Number(index)]));
    for (const [mark, found] of Object.entries(kept)) {
      if (indices.has(mark) && (found === "favorite" || found === "reject")) marks.set(indices.get(mark), found);
    }
  };
  const keep = () => {
    const kept = Object.fromEntries([...marks].map(([index, mark]) => [candidates[index].mark, mark]));
    try {
      if (marks.size) localStorage.setItem(key, JSON.stringify(kept));
      else localStorage.removeItem(key);
    } catch {}
  };

  const chosen = (mark) => [...marks].filter(([, found]) => found === mark).map(([index]) => index); // in the order in which they were marked
  const counted = (number, one, several) => `${number} ${number === 1 ? one : several}`;

  const command = () => {
    const favorites = chosen("favorite"), rejects = chosen("reject");
    return [
      `sp-rerank pick ${folder()}`, ...favorites,
      ...(rejects.length ? ["--not", rejects.join(",")] : []), ...(favorites.length ? ["--out best/"] : []),
    ].join(" ");
  };

  const draw = () => {
    const favorites = chosen("favorite"), rejects = chosen("reject");
    tray.hidden = !marks.size;
    document.body.classList.toggle("marked", marks.size > 0);
    find("count").textContent = [
      favorites.length ? counted(favorites.length, "favorite", "favorites") : "",
      rejects.length ? `${rejects.length} rejected` : "",
    ].filter(Boolean).join(", ");
    find("favorites").replaceChildren(...favorites.map(show));
    find("command").textContent = command();
    const larger = find("larger");
    larger.hidden = !favorites.length;
    larger.dataset.copy = `sp-rerank replay ${folder()} ${favorites.join(" ")} --scale 2`;
  };

  const toggle = (index, mark) => {
    const same = marks.get(index) === mark;
    marks.delete(index);
    if (!same) marks.set(index, mark);
    keep();
    draw();
    changed(index);
  };

  const copy = async (button, text) => {
    const words = button.textContent;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      find("command").textContent = text;
      getSelection().selectAllChildren(find("command")); // where the browser forbids it, the person copies it
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = words), 1500);
  };

  find("copy").addEventListener("click", (event) => copy(event.currentTarget, command()));
  find("larger").addEventListener("click", (event) => copy(event.currentTarget, event.currentTarget.dataset.copy));
  find("clear").addEventListener("click", () => {
    const all = [...marks.keys()];
    marks.clear();
    keep();
    draw();
    all.forEach(changed);
  });

  // Another tab of the same run marked something, or a reload was faster than the browser's own keeping
  addEventListener("storage", (event) => {
    if (event.key !== key && event.key !== null) return; // null: all was cleared
    const before = [...marks.keys()];
    marks.clear();
    read();
    draw();
    new Set([...before, ...marks.keys()]).forEach(changed);
  });

  read();
  draw();
  return { of: (index) => marks.get(index), toggle };
};
