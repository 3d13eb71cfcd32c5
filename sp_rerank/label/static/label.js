// The label page: shows a pair, sends what was said of it, shows the next one, which is loaded already.
"use strict";

const byId = (id) => document.getElementById(id);
const stage = byId("stage"), sides = { left: byId("left"), right: byId("right") };
const guide = byId("guide"), order = byId("order"), trouble = byId("trouble");
const KEYS = {
  ArrowLeft: "left", 1: "left", ArrowRight: "right", 2: "right", ArrowDown: "equal", "=": "equal", x: "bad", s: "skip",
};
const WORDS = { left: "The first is better", right: "The second is better", equal: "Equal", bad: "Both bad", skip: "Skipped" };
const HOLD = 250, SWIPE = 48, FLASH = 150, AGAIN = 1000; // milliseconds, pixels, milliseconds, milliseconds

const pictures = new Map(); // by name: an image element, loaded and decoded
const sent = new Set(); // ids of questions that were answered here
let questions = []; // the shown one first
let seen = 0; // when the shown pair could be seen; 0 while it cannot
let sending = Promise.resolve(); // answers go out one after the other
let ended = false, first = true;

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

function complain(text) {
  trouble.textContent = text;
  trouble.hidden = !text;
}

// Talking with the server: what is not kept is sent again, for the id of an answer keeps it from being kept twice.
async function ask(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), keepalive: true,
  };
  for (;;) {
    let reply;
    try {
      reply = await fetch(path, options);
    } catch {
      complain("No connection to sp-rerank. The last answer is not kept yet; it is sent again as soon as it can be.");
      stage.classList.add("waiting");
      await pause(AGAIN);
      continue;
    }
    stage.classList.remove("waiting");
    if (reply.ok || reply.status === 409) {
      complain("");
      return reply.json();
    }
    const reason = await reply.text();
    if (reply.status === 507) {
      complain(`${reason}. It is tried again.`);
      await pause(AGAIN);
      continue;
    }
    ended = true;
    complain(reply.status === 403 ? "This page is of an earlier start of sp-rerank. Open the link that it printed last." : reason);
    throw new Error(reason);
  }
}

function picture(name) {
  if (!pictures.has(name)) {
    const image = new Image();
    image.src = `/image/${name}`;
    image.draggable = false;
    image.ready = image.decode().catch(() => {});
    pictures.set(name, image);
    if (pictures.size > 24) pictures.delete(pictures.keys().next().value);
  }
  return pictures.get(name);
}

async function show() {
  const question = questions[0];
  seen = 0;
  for (const waiting of questions) for (const side of ["left", "right"]) picture(waiting[side]);
  if (!question) {
    for (const side of ["left", "right"]) sides[side].replaceChildren();
    return;
  }
  if (byId("prompt").textContent !== question.prompt) byId("prompt").textContent = question.prompt;
  const pair = ["left", "right"].map((side) => {
    const image = picture(question[side]);
    image.alt = side === "left" ? "First picture" : "Second picture";
    sides[side].replaceChildren(image);
    return image;
  });
  await Promise.all(pair.map((image) => image.ready));
  if (questions[0]?.id !== question.id) return;
  for (const image of pair) image.classList.toggle("small", image.naturalWidth > 0 && image.naturalWidth * 2 <= image.clientWidth);
  requestAnimationFrame(() => {
    seen = performance.now();
    document.body.dataset.shown = question.id;
  });
}

function take(state) {
  const before = questions[0];
  questions = state.questions.filter((question) => !sent.has(question.id));
  byId("answered").textContent = state.answered;
  byId("unit").textContent = state.answered === 1 ? "answer" : "answers";
  byId("minutes").textContent = state.minutes ? ` · ${state.minutes} min` : "";
  byId("undo").disabled = !state.undoable;
  byId("best").hidden = state.sure === null;
  byId("scorer").textContent = state.scorer ? `The scorer would have said the same in ${state.scorer}.` : "";
  tellHowSure(state);
  if (state.lost) complain(`${state.lost} pictures were removed or changed meanwhile and are no longer asked for.`);
  if (first && state.answered === 0) guide.showModal();
  first = false;
  if (!before || !questions[0] || questions[0].id !== before.id) show();
  else for (const waiting of questions) for (const side of ["left", "right"]) picture(waiting[side]);
}

function tellHowSure(state) {
  const place = byId("sure");
  place.replaceChildren();
  if (state.sure === null) return;
  place.append(`Your best so far is the best of all with probability ${state.sure.toFixed(2)}`);
  if (state.enough || state.settled) {
    const enough = document.createElement("b");
    enough.textContent = state.enough ? " – that is enough, you can stop." : " – no answer would change the first four, you can stop.";
    place.append(enough);
  } else place.append(".");
}

function answer(said) {
  const question = questions[0];
  if (ended || !question || !seen || stage.classList.contains("waiting") || guide.open || order.open) return;
  const milliseconds = Math.min(Math.round(performance.now() - seen), 86400000);
  sent.add(question.id);
  questions = questions.slice(1);
  look(false);
  if (sides[said]) {
    sides[said].classList.add("chosen");
    setTimeout(() => sides[said].classList.remove("chosen"), FLASH);
  }
  byId("spoken").textContent = `${WORDS[said]}.`;
  byId("undo").disabled = false;
  show();
  sending = sending.then(() => ask("/answer", { id: question.id, said, milliseconds })).then(take, () => {});
}

function undo() {
  if (ended || byId("undo").disabled || guide.open || order.open) return;
  seen = 0;
  byId("spoken").textContent = "Taken back.";
  sending = sending.then(() => ask("/undo", {})).then(take, () => {});
}

async function showBest() {
  if (ended || byId("best").hidden) return;
  await sending;
  const names = await ask("/best");
  byId("order-pictures").replaceChildren(...names.map((name, place) => {
    const figure = document.createElement("figure"), caption = document.createElement("figcaption"), image = new Image();
    image.src = `/image/${name}`;
    image.alt = `Place ${place + 1}`;
    image.addEventListener("load", () => image.classList.toggle("small", image.naturalWidth * 2 <= image.clientWidth));
    caption.textContent = place + 1;
    figure.append(image, caption);
    return figure;
  }));
  byId("order-text").textContent = `For “${byId("prompt").textContent}”, from your answers and the scorer's order.`;
  order.showModal();
}

// Looking closely: both pictures at their own pixels, or twice as large, under one pointer.
let closely = false, pointer = { x: 0.5, y: 0.5 };

function look(on) {
  closely = on;
  stage.classList.toggle("close", on);
  for (const side of ["left", "right"]) {
    const image = sides[side].firstElementChild;
    if (!image) continue;
    if (!on) {
      image.style.transform = "";
      continue;
    }
    const box = sides[side].getBoundingClientRect();
    const fit = Math.min(box.width / image.naturalWidth, box.height / image.naturalHeight);
    const factor = Math.max(2, 1 / (fit * devicePixelRatio));
    image.style.transformOrigin = `${100 * pointer.x}% ${100 * pointer.y}%`;
    image.style.transform = `scale(${factor})`;
  }
}

function point(event) {
  const side = event.target.closest("figure") ?? sides.left, box = side.getBoundingClientRect();
  pointer = {
    x: Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)),
    y: Math.min(1, Math.max(0, (event.clientY - box.top) / box.height)),
  };
  if (closely) look(true);
}

let press = null;

stage.addEventListener("pointerdown", (event) => {
  const figure = event.target.closest("figure");
  if (!figure || event.button > 0) return;
  point(event);
  press = { x: event.clientX, y: event.clientY, side: figure.id, held: false };
  press.timer = setTimeout(() => {
    press.held = true;
    look(true);
  }, HOLD);
});
stage.addEventListener("pointermove", (event) => {
  if (press && !press.held && Math.hypot(event.clientX - press.x, event.clientY - press.y) > 10) clearTimeout(press.timer);
  point(event);
});
addEventListener("pointerup", (event) => {
  if (!press) return;
  const { x, y, side, held, timer } = press;
  press = null;
  clearTimeout(timer);
  if (held) return look(false);
  const stacked = sides.left.getBoundingClientRect().left === sides.right.getBoundingClientRect().left;
  const along = stacked ? event.clientY - y : event.clientX - x;
  if (event.pointerType === "touch" && Math.abs(along) > SWIPE) answer(along < 0 ? "left" : "right");
  else if (Math.hypot(event.clientX - x, event.clientY - y) <= 10) answer(side);
});
addEventListener("pointercancel", () => {
  if (press) clearTimeout(press.timer);
  press = null;
  look(false);
});
stage.addEventListener("contextmenu", (event) => event.preventDefault()); // a finger that is held

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || guide.open || order.open) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key === " ") {
    if (event.target.closest("button")) return;
    event.preventDefault();
    if (!closely) look(true);
  } else if (event.repeat) {
    return;
  } else if (key in KEYS) {
    event.preventDefault();
    answer(KEYS[key]);
  } else if (key === "u" || key === "Backspace") {
    event.preventDefault();
    undo();
  } else if (key === "b") showBest();
  else if (key === "?") guide.showModal();
});
addEventListener("keyup", (event) => {
  if (event.key === " " && closely) look(false);
});
addEventListener("blur", () => look(false));
for (const button of document.querySelectorAll("[data-said]")) button.addEventListener("click", () => answer(button.dataset.said));
byId("undo").addEventListener("click", undo);
byId("best").addEventListener("click", showBest);
byId("help").addEventListener("click", () => guide.showModal());
addEventListener("click", (event) => {
  // after a click with the pointer the keys are the page's again; who walks by Tab stays where they are
  if (event.detail > 0) event.target.closest?.("button")?.blur();
});

ask("/state").then(take, () => {});
