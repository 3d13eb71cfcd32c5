// Pictures looked at closely: one, or two side by side, zoomed and moved together by wheel, drag, pinch and keys.
// Knows panes and pointers; knows nothing of candidates.
"use strict";
const closeup = (stage, { swipe }) => {
  const MOST = 24; // times as large as what fits
  const view = { scale: 1, x: 0.5, y: 0.5 }; // the place in the middle, as a share of the pane's sides
  const fingers = new Map();
  let start = null, hover = [0.5, 0.5], before = null;

  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

  const draw = () => {
    const room = 0.5 / view.scale;
    view.x = clamp(view.x, room, 1 - room);
    view.y = clamp(view.y, room, 1 - room);
    const [x, y] = [view.x, view.y].map((middle) => `${(0.5 - middle) * view.scale * 100}%`);
    for (const image of stage.querySelectorAll("img")) image.style.transform = `translate(${x}, ${y}) scale(${view.scale})`;
    stage.classList.toggle("near", view.scale > 1);
  };

  const paneOf = (event) => event.target.closest?.(".pane") ?? stage.querySelector(".pane");
  const placeOf = (event) => {
    const box = paneOf(event).getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };

  const zoomTo = (scale, [u, v]) => { // what lies under the pointer stays there
    const x = view.x + (u - 0.5) / view.scale, y = view.y + (v - 0.5) / view.scale;
    view.scale = clamp(scale, 1, MOST);
    view.x = x - (u - 0.5) / view.scale;
    view.y = y - (v - 0.5) / view.scale;
    draw();
  };

  const fit = () => {
    Object.assign(view, { scale: 1, x: 0.5, y: 0.5 });
    draw();
  };

  const full = () => { // a pixel of the picture is one of the screen; of a small picture twice what fits
    const image = stage.querySelector("img");
    if (!image?.naturalWidth) return 2;
    const shown = Math.min(image.clientWidth / image.naturalWidth, image.clientHeight / image.naturalHeight);
    return Math.max(2, 1 / (shown * devicePixelRatio));
  };

  const follow = ([u, v]) => { // the whole picture lies under the way of the pointer
    const room = 0.5 / view.scale;
    view.x = room + u * (1 - 2 * room);
    view.y = room + v * (1 - 2 * room);
    draw();
  };

  const hold = () => {
    if (before) return;
    before = { ...view };
    view.scale = full();
    follow(hover);
  };
  const release = () => {
    if (!before) return;
    Object.assign(view, before);
    before = null;
    draw();
  };

  const distance = () => {
    const [a, b] = [...fingers.values()];
    return Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
  };

  stage.addEventListener("wheel", (event) => {
    if (!stage.querySelector("img")) return;
    event.preventDefault();
    zoomTo(view.scale * Math.exp(-event.deltaY / 400), placeOf(event));
  }, { passive: false });

  stage.addEventListener("dblclick", (event) => (view.scale > 1 ? fit() : zoomTo(full(), placeOf(event))));

  stage.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    fingers.set(event.pointerId, event);
    start = fingers.size === 1 ? event : null;
    if (view.scale > 1 || fingers.size > 1) stage.setPointerCapture(event.pointerId);
  });

  stage.addEventListener("pointermove", (event) => {
    hover = placeOf(event);
    if (before) return follow(hover);
    const last = fingers.get(event.pointerId);
    if (!last) return;
    if (fingers.size === 2) {
      const apart = distance();
      fingers.set(event.pointerId, event);
      zoomTo((view.scale * distance()) / apart, hover);
    } else {
      fingers.set(event.pointerId, event);
      if (view.scale === 1) return;
      const box = paneOf(last).getBoundingClientRect();
      view.x -= (event.clientX - last.clientX) / box.width / view.scale;
      view.y -= (event.clientY - last.clientY) / box.height / view.scale;
      draw();
    }
  });

  const lift = (event) => {
    if (!fingers.delete(event.pointerId) || event.type !== "pointerup") return;
    const across = start && start.pointerId === event.pointerId && view.scale === 1 ? event.clientX - start.clientX : 0;
    const down = start ? event.clientY - start.clientY : 0;
    if (event.pointerType === "touch" && Math.abs(across) > 48 && Math.abs(across) > 2 * Math.abs(down)) swipe(across < 0 ? 1 : -1);
    start = null;
  };
  for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, lift);
  stage.addEventListener("dragstart", (event) => event.preventDefault());

  return { draw, fit, hold, release, zoom: (by) => zoomTo(view.scale * by, [0.5, 0.5]) };
};
