// The page of a run, made handy: order, filter, columns, zoom, keys. It only rearranges what the page says already;
// every text goes in as text, never as HTML. How a picture is looked at closely is in closeup.js, marks are in marks.js.
// It is one file, for its parts share what is ordered, passing, open and focused.
"use strict";
(() => {
  const find = (id) => document.getElementById(id);
  const data = JSON.parse(find("data").textContent);
  const sheet = find("sheet");
  if (!sheet) return;
  const { scorers, candidates } = data;
  const columns = find("columns"), tools = find("tools"), least = find("least");
  const zoom = find("zoom"), keys = find("keys");
  const state = { scorer: 0, view: "sheet", least: -Infinity, open: null, opener: null, pinned: null };

  // What the data say

  const places = scorers.map((scorer) => new Map(scorer.order.map((index, place) => [index, place])));
  const order = () => (scorers.length ? scorers[state.scorer].order : data.order);
  const rankOf = (s, index) => {
    const place = places[s].get(index);
    return place < scorers[s].ranked ? place + 1 : null;
  };
  const scoreOf = (s, index) => (rankOf(s, index) === null ? null : candidates[index].scores[s]);
  const shown = (s, score) => (score === null ? "–" : score.toFixed(scorers[s]?.digits ?? 4));
  const passes = (index) =>
    state.least === -Infinity || (scoreOf(state.scorer, index) ?? -Infinity) >= state.least;
  const ordinal = (n) => {
    const teen = n % 100 >= 11 && n % 100 <= 13;
    return n + ((!teen && ["", "st", "nd", "rd"][n % 10]) || "th");
  };

  const make = (tag, text, name) => {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (name) node.className = name;
    return node;
  };

  const picture = (index) => {
    const { file, small, size, seed } = candidates[index];
    if (!file) return make("span", "no image", "absent");
    const image = make("img");
    image.loading = "lazy";
    image.decoding = "async";
    [image.width, image.height] = size;
    image.alt = `Seed ${seed}`;
    image.src = small;
    return image;
  };

  // The sheet

  const items = new Map([...sheet.children].map((item) => [Number(item.dataset.index), item]));
  if (data.embedded) // each image is in the page once
    for (const [index, item] of items) candidates[index].file = candidates[index].small = item.querySelector("img")?.src;
  const stateOf = (index) => {
    const { status, stages } = candidates[index];
    if (status === "dropped") return stages.length ? shown(0, stages.at(-1)[1]) : "dropped";
    return { flagged: "flagged", nonfinite: "not finite" }[status] ?? "no score";
  };
  const caption = (s, index) => {
    const rank = rankOf(s, index);
    return [rank ?? "", rank ? shown(s, scoreOf(s, index)) : stateOf(index)];
  };

  const arrange = () => {
    const held = sheet.contains(document.activeElement) ? document.activeElement : null;
    for (const [index, item] of items) {
      const [rank, score] = caption(state.scorer, index);
      item.querySelector("b").textContent = rank;
      item.querySelector(".score").textContent = score;
      item.querySelector("img")?.setAttribute("alt", `${rank ? `Rank ${rank}, seed` : "Seed"} ${candidates[index].seed}`);
    }
    sheet.replaceChildren(...order().map((index) => items.get(index))); // at once: one by one takes a second
    setCurrent(sheet, held?.closest("li") ?? sheet.firstElementChild);
    held?.focus({ preventScroll: true });
  };

  const filter = () => {
    for (const list of lists()) for (const item of list.children) item.hidden = !passes(Number(item.dataset.index));
    if (least) {
      const count = [...items.keys()].filter(passes).length;
      const all = state.least === -Infinity;
      find("passed").textContent = all ? `all ${count}` : `${shown(state.scorer, state.least)}: ${count} of ${items.size}`;
    }
    for (const list of lists()) {
      const now = list.querySelector("li:not([hidden]) a[tabindex='0']");
      if (!now) setCurrent(list, list.querySelector("li:not([hidden])"));
    }
    link(null);
  };

  const readFilter = () => {
    const scorer = scorers[state.scorer];
    const best = candidates[scorer.order[0]].scores[state.scorer];
    const worst = candidates[scorer.order[scorer.ranked - 1]].scores[state.scorer];
    const share = Number(least.value) / 1000;
    state.least = share === 0 ? -Infinity : share === 1 ? best : worst + share * (best - worst);
  };

  const orderBy = (s) => {
    state.scorer = s;
    if (least) least.value = 0;
    state.least = -Infinity;
    arrange();
    filter();
  };

  // Columns: the orders side by side, one candidate linked through all of them

  const lists = () => [sheet, ...(columns ? columns.querySelectorAll("ol") : [])];

  const buildColumns = () => {
    columns.style.setProperty("--count", scorers.length);
    columns.append(document.createElementNS("http://www.w3.org/2000/svg", "svg"));
    columns.firstChild.append(document.createElementNS("http://www.w3.org/2000/svg", "polyline"));
    columns.firstChild.setAttribute("aria-hidden", "true");
    scorers.forEach((scorer, s) => {
      const column = make("div", undefined, "column");
      const head = make("h3", scorer.label);
      head.append(make("small"));
      const list = make("ol");
      list.setAttribute("aria-label", `By ${scorer.label}`);
      for (const index of scorer.order) {
        const item = make("li", undefined, candidates[index].status);
        item.dataset.index = index;
        const anchor = make("a");
        anchor.href = (!data.embedded && candidates[index].file) || `#c${index}`;
        const label = make("span", undefined, "caption"), [rank, score] = caption(s, index);
        label.append(make("b", rank), make("span", score, "score"), make("i", `#${candidates[index].seed}`));
        anchor.append(picture(index), label);
        item.append(anchor);
        list.append(item);
        if (marks.of(index)) item.classList.add(marks.of(index));
      }
      column.append(head, list);
      columns.append(column);
      setCurrent(list, list.firstChild);
    });
  };

  const link = (index) => {
    if (!columns?.childElementCount) return;
    for (const old of columns.querySelectorAll(".same")) old.classList.remove("same");
    const corner = columns.getBoundingClientRect(), points = [];
    columns.querySelectorAll(".column").forEach((column, s) => {
      const note = column.querySelector("small");
      note.textContent = "";
      const item = index === null ? null : column.querySelector(`li[data-index="${index}"]`);
      if (!item || item.hidden) return;
      item.classList.add("same");
      const rank = rankOf(s, index);
      note.textContent = `seed ${candidates[index].seed}: ${rank ? ordinal(rank) : "not ranked"}`;
      const box = item.getBoundingClientRect(), y = box.top - corner.top + box.width / 2;
      points.push(`${box.left - corner.left - 4},${y}`, `${box.right - corner.left + 4},${y}`);
    });
    columns.querySelector("polyline").setAttribute("points", points.slice(1, -1).join(" "));
  };

  const measure = () => { // how tall an item is that is not drawn yet, so that lines and the scroll bar are right
    for (const list of lists()) {
      const item = visible(list)[0];
      if (item?.offsetHeight) list.style.setProperty("--tall", `${item.querySelector("a").offsetHeight}px`);
    }
  };

  const show = (view) => {
    state.view = view;
    if (view === "columns" && !columns.childElementCount) buildColumns();
    sheet.hidden = view !== "sheet";
    columns.hidden = view !== "columns";
    filter();
    measure();
  };

  // Moving about: one candidate of a list takes the focus, the arrows carry it on

  const setCurrent = (list, item) => {
    for (const old of list.querySelectorAll("a[tabindex='0']")) old.tabIndex = -1;
    if (item) item.querySelector("a").tabIndex = 0;
  };

  const visible = (list) => [...list.children].filter((item) => !item.hidden);

  const step = (item, key) => {
    const list = item.parentNode, all = visible(list), at = all.indexOf(item);
    const index = item.dataset.index;
    if (list !== sheet && (key === "ArrowLeft" || key === "ArrowRight")) {
      const beside = key === "ArrowLeft" ? list.parentNode.previousElementSibling : list.parentNode.nextElementSibling;
      return beside?.querySelector(`li[data-index="${index}"]`);
    }
    const wide = list === sheet ? getComputedStyle(sheet).gridTemplateColumns.split(" ").length : 1;
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -wide, ArrowDown: wide };
    if (key === "Home") return all[0];
    if (key === "End") return all[all.length - 1];
    return key in by ? all[at + by[key]] : undefined;
  };

  const focusOn = (item) => {
    setCurrent(item.parentNode, item);
    item.querySelector("a").focus();
    item.scrollIntoView({ block: "nearest" });
  };

  // The zoomed view

  const folder = () => {
    if (data.embedded) return "RUN"; // the page is not in its folder
    if (location.protocol !== "file:") return ".";
    const path = decodeURIComponent(location.pathname).replace(/\/[^/]*$/, "").replace(/^\/(?=[A-Za-z]:)/, "");
    if (/[\u0000-\u001f\u007f]/.test(path)) return ".";
    return /^[\w@%+=:,./-]+$/.test(path) && path[0] !== "-" ? path : `'${path.replaceAll("'", "'\\''")}'`;
  };
  const command = (index) => `sp-rerank replay ${folder()} ${index}`;

  const ties = (index) => {
    const said = scorers.map((scorer, s) => {
      const rank = rankOf(s, index);
      if (rank === null) return "";
      if (!scorer.groups) return "";
      const group = scorer.groups[rank - 1];
      const mates = scorer.order.filter((other, place) => scorer.groups[place] === group && other !== index);
      if (!mates.length) {
        const others = scorer.ranked === Object.keys(candidates).length ? "all others" : "all others that it scored";
        return `${scorer.label} tells it apart from ${others}.`;
      }
      const named = mates.slice(0, 6).map((other) => candidates[other].seed).join(", ");
      const rest = mates.length > 6 ? ` and ${mates.length - 6} more` : "";
      return `${scorer.label} does not reliably tell it apart from seed ${named}${rest} (tie group ${group}).`;
    });
    const silent = scorers.filter((scorer, s) => !scorer.groups && rankOf(s, index) !== null).map((scorer) => scorer.label);
    if (silent.length) said.push(`No calibration of ${silent.join(", ")}: ties unknown.`);
    return said.filter(Boolean).join(" ");
  };

  const fill = (table, rows) => {
    table.hidden = !rows.length;
    table.tBodies[0].replaceChildren(
      ...rows.map((cells) => {
        const row = make("tr");
        row.append(...cells.map((cell) => make("td", cell)));
        return row;
      }),
    );
  };

  const pane = (index, words) => {
    const { file } = candidates[index], image = picture(index);
    if (file) Object.assign(image, { src: file, loading: "eager", alt: data.prompt, draggable: false });
    const frame = make("figure", undefined, "pane");
    frame.append(image);
    if (words) frame.append(make("figcaption", words));
    return frame;
  };

  const fillPanes = (index) => { // the pinned one and the open one; what one shows of itself, the other shows too
    const { pinned } = state, two = pinned !== null && pinned !== index;
    const said = (of) => `seed ${candidates[of].seed}`;
    const panes = two ? [pane(pinned, `pinned: ${said(pinned)}`), pane(index, said(index))] : [pane(index, pinned === index ? "pinned: go on to see others beside it" : "")];
    find("picture").replaceChildren(...panes);
    find("picture").classList.toggle("two", two);
    if (two) near.draw();
    else near.fit();
  };

  const drawButtons = (index) => {
    for (const button of zoom.querySelectorAll("[data-mark]")) button.setAttribute("aria-pressed", marks.of(index) === button.dataset.mark);
    find("pin").setAttribute("aria-pressed", state.pinned === index);
  };

  const pin = () => {
    state.pinned = state.pinned === state.open ? null : state.open;
    fillZoom(state.open);
  };

  const fillZoom = (index) => {
    const candidate = candidates[index];
    state.open = index;
    const rank = scorers.length ? rankOf(state.scorer, index) : null;
    find("place").textContent = rank
      ? `${ordinal(rank)} of ${scorers[state.scorer].ranked}${scorers.length > 1 ? ` by ${scorers[state.scorer].label}` : ""}`
      : "Not ranked";
    find("why").textContent = candidate.why;
    drawButtons(index);
    fillPanes(index);
    fill(find("scores"), scorers.map((scorer, s) => {
      const place = rankOf(s, index);
      return [scorer.label, shown(s, candidate.scores[s]), place ? `${place} of ${scorer.ranked}` : "–"];
    }));
    find("ties").textContent = ties(index);
    fill(find("stages"), candidate.stages.map(([name, score, spent]) => [name, shown(0, score), spent]));
    find("seed").textContent = candidate.seed;
    find("index").textContent = `${index} of 0–${data.last}`;
    find("evaluations").textContent = candidate.evaluations;
    find("file").textContent = candidate.file ? candidate.name : "none";
    if (candidate.file && !data.embedded) find("file").href = candidate.file;
    else find("file").removeAttribute("href");
    if (!find("replay")) return; // a steered image: no command makes it again
    find("replay").textContent = command(index);
    find("copy").textContent = "Copy";
  };

  const open = (index, opener) => {
    state.opener = opener;
    fillZoom(index);
    if (zoom.open) return;
    zoom.showModal();
    zoom.querySelector(".close").focus();
  };

  const go = (by) => {
    if (!by) return zoom.close();
    const passing = order().filter(passes), at = passing.indexOf(state.open);
    const next = at < 0 ? passing[0] : passing[at + by];
    if (next === undefined) return;
    fillZoom(next);
    const ahead = candidates[passing[passing.indexOf(next) + Math.sign(by)]]?.file;
    if (ahead) new Image().src = ahead; // so that the next one is there at once
  };

  const near = closeup(find("picture"), { swipe: go });

  // Favorites and rejects

  const showMark = (index) => {
    for (const item of document.querySelectorAll(`li[data-index="${index}"]`)) {
      item.classList.toggle("favorite", marks.of(index) === "favorite");
      item.classList.toggle("reject", marks.of(index) === "reject");
    }
    if (state.open === index) drawButtons(index);
  };
  const marks = markings(find("tray"), {
    key: `sp-rerank marks ${data.run}`, candidates, folder, changed: showMark,
    show: (index) => {
      const item = make("li"), button = make("button");
      item.dataset.index = index;
      button.type = "button";
      button.append(picture(index));
      button.setAttribute("aria-label", `Favorite, seed ${candidates[index].seed}`);
      button.addEventListener("click", () => open(index, button));
      item.append(button);
      return item;
    },
  });

  // The focus goes back to where it came from, or to the candidate that is open by now
  zoom.addEventListener("close", () => {
    const { opener, open: index } = state;
    find("picture").replaceChildren();
    state.open = state.pinned = null;
    if (!opener) return;
    const other = Number(indexOf(opener)) === index ? null : (opener.closest("ol") ?? sheet).querySelector(`li[data-index="${index}"]`);
    if (other?.offsetParent) focusOn(other);
    else opener.focus({ preventScroll: true });
  });

  const copy = async () => {
    const code = find("replay");
    try {
      await navigator.clipboard.writeText(code.textContent);
      find("copy").textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code); // where the browser forbids it, it is selected for the person to copy
      find("copy").textContent = "Selected";
    }
  };

  // Scatter plots: the nearest dot opens

  const nearest = (chart, event) => {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(chart.getScreenCTM().inverse());
    const { x, y, xLow, xHigh, yLow, yHigh } = chart.dataset;
    const [left, right, top, bottom] = chart.dataset.frame.split(" ").map(Number);
    let best = null;
    for (const index of scorers[x].order) {
      const a = scoreOf(x, index), b = scoreOf(y, index);
      if (a === null || b === null) continue;
      const cx = left + ((a - xLow) / (xHigh - xLow)) * (right - left);
      const cy = bottom + ((b - yLow) / (yHigh - yLow)) * (top - bottom);
      const far = Math.hypot(cx - point.x, cy - point.y);
      if (far < 16 && (!best || far < best.far)) best = { index, cx, cy, far };
    }
    return best;
  };

  for (const chart of document.querySelectorAll(".scatter")) {
    const near = chart.querySelector(".near");
    chart.addEventListener("pointermove", (event) => {
      const best = nearest(chart, event);
      near.toggleAttribute("hidden", !best);
      if (best) for (const side of ["cx", "cy"]) near.setAttribute(side, best[side]);
    });
    chart.addEventListener("pointerleave", () => near.setAttribute("hidden", ""));
    chart.addEventListener("click", (event) => {
      const best = nearest(chart, event);
      if (best) open(best.index, null);
    });
  }

  // Hands and keys

  const indexOf = (node) => node.closest?.("[data-index]")?.dataset.index;

  document.addEventListener("click", (event) => {
    const anchor = event.target.closest("[data-index] a");
    if (!anchor || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey || event.button) return;
    event.preventDefault();
    open(Number(indexOf(anchor)), anchor);
  });
  zoom.addEventListener("click", (event) => {
    const button = event.target.closest("[data-go], [data-mark]");
    if (button?.dataset.mark) marks.toggle(state.open, button.dataset.mark);
    else if (button) go(Number(button.dataset.go));
    else if (event.target === zoom) zoom.close();
  });
  find("copy")?.addEventListener("click", copy);
  find("pin").addEventListener("click", pin);
  find("ask").addEventListener("click", () => keys.showModal());
  columns?.addEventListener("pointerover", (event) => {
    const index = indexOf(event.target);
    if (index !== undefined) link(Number(index));
  });
  columns?.addEventListener("focusin", (event) => link(Number(indexOf(event.target))));
  tools.addEventListener("submit", (event) => event.preventDefault());
  tools.addEventListener("input", (event) => {
    if (event.target.name === "scorer") orderBy(Number(event.target.value));
    else if (event.target.name === "view") show(event.target.value);
    else if (event.target === least) {
      readFilter();
      filter();
    }
  });

  const choose = (name, value) => {
    const input = tools.querySelector(`input[name="${name}"][value="${value}"]`);
    if (!input) return;
    input.checked = true;
    input.dispatchEvent(new Event("input", { bubbles: true }));
  };

  const MARKS = { f: "favorite", x: "reject" };
  document.addEventListener("keyup", ({ key }) => key === "z" && near.release());
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || keys.open) return;
    const { key } = event;
    if (zoom.open) {
      if (key === "ArrowLeft") go(-1);
      else if (key === "ArrowRight") go(1);
      else if (key === "c" && find("copy")) copy();
      else if (key in MARKS) marks.toggle(state.open, MARKS[key]);
      else if (key === "p") pin();
      else if (key === "z") near.hold();
      else if (key === "+" || key === "=") near.zoom(1.5);
      else if (key === "-") near.zoom(1 / 1.5);
      else if (key === "0") near.fit();
      return;
    }
    if (event.target.matches?.("input") && key !== "Escape") return;
    const item = event.target.closest?.(".sheet li, .column li");
    const next = item && step(item, key);
    if (next) focusOn(next);
    else if (item && key in MARKS) marks.toggle(Number(item.dataset.index), MARKS[key]);
    else if (!item && key === "ArrowDown" && event.target === document.body) focusOn(visible(lists()[state.view === "sheet" ? 0 : 1])[0]);
    else if (key === "/" && least) least.focus();
    else if (key === "Escape" && least) {
      least.value = 0;
      state.least = -Infinity;
      filter();
      event.target.blur?.();
    } else if (key === "?") keys.showModal();
    else if (key === "v" && columns) choose("view", state.view === "sheet" ? "columns" : "sheet");
    else if (/^[1-9]$/.test(key)) choose("scorer", Number(key) - 1);
    else return;
    event.preventDefault();
  });

  // The start: all but the first candidate out of the way of the Tab key

  for (const anchor of sheet.querySelectorAll("a")) anchor.tabIndex = -1;
  setCurrent(sheet, sheet.firstElementChild);
  items.forEach((_, index) => showMark(index));
  filter();
  measure();
  addEventListener("resize", measure);
  if (find("run").classList.contains("small")) zoom.classList.add("small");
  const asked = /^#c(\d+)$/.exec(location.hash);
  if (asked && candidates[asked[1]]) open(Number(asked[1]), items.get(Number(asked[1])).querySelector("a"));
})();
