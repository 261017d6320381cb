// A contact sheet as an element: its cells are buttons, and its drafts can be looked at closely in their place. It knows
// of no graph. Space and Enter mark, as they press any button; so looking closely is Z and the wheel, which belongs to
// the sheet only while that has the focus, as the host has it for its own widgets: else it zooms the canvas.
import "./swd_style.js";

const HINT = "Space marks · A all · X none · Z closer · C compares";
const KEEPS = " · K keeps", REMOVES = " · Del removes";
const BAR = 54; // its buttons, and the line below them

function make(kind, parent, props = {}) {
  return parent.appendChild(Object.assign(document.createElement(kind), props));
}

// Args: toggle(number), all(), none(), finish(), only(number), numbers from 1; enter(); resized(height over width);
// pass(event), of the wheel where it is the canvas's. keep(numbers) puts drafts on the tray; a sheet of the tray has
// { remove(numbers), undo(), next() } in its place.
export function makeSheet({ toggle, all, none, finish, only, enter, resized, pass, keep, tray }) {
  const { remove, undo, next } = tray ?? {};
  const hint = HINT + (remove ? REMOVES : KEEPS);
  const root = document.createElement("div");
  root.className = "swd-sheet";
  root.hidden = true; // until its picture is there
  root.dataset.captureWheel = "true";
  const page = make("div", root, { className: "swd-page" });
  const image = make("img", page, { decoding: "async" });
  const grid = make("div", page, { className: "swd-grid", role: "group" });
  const closer = make("div", page, { className: "swd-closer", hidden: true, ariaHidden: "true" });
  const bar = make("div", root, { className: "swd-bar" });
  const go = make("button", bar, { type: "button", textContent: "Finish picked", title: "Ctrl+Enter; a double click finishes one" });
  const zoomer = make("button", bar, { type: "button", textContent: "Closer", title: "Z, or the wheel" });
  const comparer = make("button", bar, { type: "button", textContent: "Compare", title: "C" });
  const keeper = make("button", bar, { type: "button", textContent: remove ? "Remove" : "Keep" });
  keeper.title = remove ? "What is marked; Delete: the one in focus" : "What is marked; K: the one in focus";
  const clearer = make("button", bar, { type: "button", textContent: "Clear the rest", hidden: true });
  clearer.title = "Removes what is not marked";
  const backer = make("button", bar, { type: "button", textContent: "Put back", title: "What was removed last", hidden: true });
  const nexter = make("button", bar, { type: "button", textContent: "Others", hidden: true });
  nexter.title = "Drafts of another model, size or schedule";
  const status = make("span", bar, { role: "status", title: hint, textContent: hint });

  let cells = { count: 0 };
  let buttons = [];
  let marks = new Set();
  let current = 0; // the draft with the focus, from 0
  let shown = ""; // the address of the sheet, which frames of the next one may stand in for
  let frame = ""; // what is drawn now
  let ratio = 0; // of the picture, height over width
  let high = BAR; // of the bar, which has another row where one has no room for its buttons
  let look = null; // or { pinned, zoom, x, y }: beside which other, how large, and where, from 0 to 1

  function move(to) {
    current = Math.max(0, Math.min(cells.count - 1, to));
    buttons.forEach((button, i) => (button.tabIndex = i === current ? 0 : -1));
    buttons[current]?.focus({ preventScroll: true });
    draw();
  }

  // Alone a draft begins as large as the sheet; beside another both begin at 100 %, a pixel for a pixel.
  function sizes(pane) {
    const [width, height] = cells.size;
    const whole = page.offsetWidth / page.getBoundingClientRect().width; // the canvas may be zoomed
    const fit = Math.min(pane.offsetWidth / width, pane.offsetHeight / height);
    const first = look.pinned === null ? fit : whole;
    const scale = Math.max(Math.min(first, fit), first * look.zoom);
    return { scale, whole, fit, first, width: width * scale, height: height * scale };
  }

  function place() {
    for (const pane of closer.children) {
      const [picture, caption] = pane.children;
      pane.classList.toggle("swd-marked", marks.has(+pane.dataset.number));
      if (!page.offsetWidth) continue; // in a graph that isn't seen now
      const { scale, whole, width, height } = sizes(picture);
      const spot = (at, long, room) => `${long > room ? at * 100 : 50}%`;
      picture.style.backgroundSize = `${width}px ${height}px`;
      picture.style.backgroundPosition = [
        spot(look.x, width, picture.offsetWidth),
        spot(look.y, height, picture.offsetHeight),
      ].join(" ");
      caption.textContent = `${pane.title} · ${Math.round((scale / whole) * 100)} %`;
    }
  }

  // play: a word that makes a video's address a new one, so that two panes begin to play at once.
  function paneOf(k, play) {
    const pane = document.createElement("div");
    Object.assign(pane, { className: "swd-pane", title: described(k), ...clicks(k) });
    pane.dataset.number = k + 1;
    make("div", pane).style.backgroundImage = `url("${cells.drafts[k]}${play}")`;
    make("p", pane);
    return pane;
  }

  function draw() {
    closer.hidden = !look;
    zoomer.setAttribute("aria-pressed", look !== null && look.pinned === null);
    comparer.setAttribute("aria-pressed", look !== null && look.pinned !== null);
    const shown = !look ? [] : look.pinned === null ? [current] : [look.pinned, current];
    if (String(shown) !== String([...closer.children].map((pane) => pane.dataset.number - 1))) {
      const play = cells.moving && shown.length > 1 ? `&rand=${Math.random()}` : "";
      closer.replaceChildren(...shown.map((k) => paneOf(k, play))); // not those that are being clicked
    }
    if (!look) return;
    place();
    for (const k of [current - 1, current + 1]) if (cells.drafts[k]) new Image().src = cells.drafts[k];
  }

  // To the next row, where that is shorter to its last draft.
  function step(by) {
    const [row, column] = cells.places[current];
    const to = cells.places.findLastIndex(([r, c]) => r === row + by && c <= column);
    if (to >= 0) move(to);
  }

  // The prompts above their rows, over the picture's own, whose font knows few scripts.
  function headings() {
    return (cells.headings ?? []).flatMap((text, k, all) => {
      if (k && text === all[k - 1]) return [];
      const heading = Object.assign(document.createElement("div"), { className: "swd-heading", textContent: text, dir: "auto" });
      heading.style.cssText = `top: ${(cells.places[k][0] / cells.rows) * 100}%; height: ${cells.head * 100}%; font-size: ${cells.letters * 100}cqw`;
      return [heading];
    });
  }

  function described(k) {
    const share = cells.share && `${Math.round(cells.share * 100)} % of a full run`;
    return [`Draft ${k + 1}`, cells.labels?.[k], share].filter(Boolean).join(" · ");
  }

  function pressed(k) {
    toggle(k + 1);
    if (k !== look?.pinned) move(k);
  }

  const clicks = (k) => ({ onclick: () => pressed(k), ondblclick: () => only(k + 1) });
  const begin = (pinned) => (look = { pinned, zoom: 1, x: 0.5, y: 0.5 });

  function closeUp() {
    if (!cells.drafts) return;
    look = look?.pinned === null ? null : begin(null);
    move(current);
  }

  // What is picked beside the draft with the focus; nothing picked: that one beside the next.
  function compare() {
    if (!cells.drafts) return;
    if (look && look.pinned !== null) look = null;
    else {
      const [other = current + 1] = [...marks].filter((number) => number !== current + 1);
      begin(other - 1);
      if (other === current + 1) current += current + 1 < cells.count ? 1 : -1;
    }
    move(current);
  }

  go.disabled = zoomer.hidden = comparer.hidden = keeper.hidden = true; // until there is a sheet

  const keys = {
    arrowleft: () => move(current - 1),
    arrowright: () => move(current + 1),
    arrowup: () => step(-1),
    arrowdown: () => step(1),
    home: () => move(0),
    end: () => move(cells.count - 1),
    a: all,
    x: none,
    z: closeUp,
    c: compare,
    k: () => tray || keep([current + 1]),
    delete: () => remove?.([current + 1]), // elsewhere nothing: the host would delete the selected node
    backspace: () => keys.delete(),
    escape: () => ((look = null), move(current)),
  };

  root.addEventListener("keydown", (e) => {
    if (!cells.count) return;
    const control = e.ctrlKey || e.metaKey;
    if (control ? e.key === "Enter" : [" ", "Enter"].includes(e.key)) {
      e.stopPropagation(); // the host would run the whole graph
      if (control) {
        e.preventDefault();
        if (!e.repeat) finish();
      }
      return;
    }
    const key = keys[e.key.toLowerCase()];
    if (!key || control || e.altKey || (e.key === "Escape" && !look)) return;
    e.preventDefault();
    e.stopPropagation();
    key();
  });

  root.addEventListener(
    "wheel",
    (e) => {
      if (e.ctrlKey || e.metaKey || !cells.drafts || !root.contains(document.activeElement)) return pass(e);
      e.preventDefault();
      e.stopPropagation();
      if (!look) {
        const under = buttons.indexOf(e.target.closest("button"));
        if (e.deltaY >= 0 || under < 0) return;
        begin(null);
        move(under);
        return;
      }
      look.zoom = Math.min(16, look.zoom * Math.exp(-e.deltaY / 500));
      const { fit, first } = sizes(closer.firstChild.firstChild);
      if (look.zoom * first < 0.8 * Math.min(first, fit)) look = null;
      look ? place() : draw();
    },
    { passive: false },
  );

  closer.addEventListener("pointermove", (e) => {
    const box = e.target.closest(".swd-pane > div")?.getBoundingClientRect();
    if (!box) return;
    look.x = (e.clientX - box.left) / box.width;
    look.y = (e.clientY - box.top) / box.height;
    place();
  });
  closer.addEventListener("mousedown", (e) => e.preventDefault()); // the focus stays with the draft
  root.addEventListener("pointerdown", (e) => e.button === 0 && e.stopPropagation());
  root.addEventListener("pointerenter", enter);
  go.onclick = finish;
  keeper.onclick = () => (remove ?? keep)(marks.size ? [...marks] : [current + 1]);
  backer.onclick = undo;
  nexter.onclick = next;
  clearer.onclick = () => remove(cells.places.map((_, k) => k + 1).filter((number) => !marks.has(number)));
  zoomer.onclick = closeUp;
  comparer.onclick = compare;
  image.onerror = () => (root.hidden = true); // cleared by a restart of the host
  image.onload = () => {
    if (frame !== image.src) URL.revokeObjectURL(frame);
    frame = image.src;
    root.hidden = false;
    page.style.aspectRatio = `${image.naturalWidth} / ${image.naturalHeight}`;
    resized((ratio = image.naturalHeight / image.naturalWidth));
  };

  function fit() {
    const now = Math.max(BAR, bar.offsetHeight);
    if (now !== high) resized(ratio, (high = now));
  }

  return {
    root,
    bar: () => high,
    // cells: rows, columns, count, places (row and column of each), and where known labels, share, size and drafts, the
    // address of each; moving: of videos.
    show(address, given) {
      cells = given;
      look = null;
      page.hidden = go.hidden = false;
      closer.replaceChildren();
      image.alt = `Contact sheet of ${cells.count} drafts`;
      shown = image.src = address;
      grid.hidden = false;
      grid.ariaLabel = `${cells.count} drafts. Arrows move, ${hint}, Ctrl+Enter finishes`;
      grid.style.gridTemplate = `repeat(${cells.rows}, 1fr) / repeat(${cells.columns}, 1fr)`;
      buttons = Array.from({ length: cells.count }, (_, k) => {
        const button = document.createElement("button");
        const [row, column] = cells.places[k];
        button.style.gridArea = `${row + 1} / ${column + 1}`;
        return Object.assign(button, {
          type: "button",
          title: `Draft ${k + 1}`,
          ariaLabel: described(k),
          tabIndex: k ? -1 : 0,
          onfocus: () => (current = k),
          ...clicks(k),
        });
      });
      grid.replaceChildren(...buttons, ...headings());
      current = 0;
      zoomer.hidden = comparer.hidden = !cells.drafts;
      keeper.hidden = false;
      draw();
    },
    // finishable: whether anything behind the sheet finishes drafts.
    mark(numbers, finishable) {
      marks = numbers;
      buttons.forEach((button, k) => button.setAttribute("aria-pressed", marks.has(k + 1)));
      go.disabled = !marks.size || !finishable;
      clearer.hidden = !remove || !marks.size || marks.size === cells.count;
      go.textContent = finishable ? `Finish ${marks.size || ""} picked` : "No Finish SwD Drafts behind";
      if (look) place();
      fit();
    },
    // Of the tray: how many drafts can be put back, how many kinds there are.
    offer({ back, kinds }) {
      if (back !== undefined) backer.hidden = !back;
      if (kinds !== undefined) nexter.hidden = kinds < 2;
      fit();
    },
    // Nothing is left on the tray but what can be put back.
    empty() {
      cells = { count: 0 };
      grid.replaceChildren(...(buttons = []));
      root.hidden = backer.hidden;
      page.hidden = go.hidden = zoomer.hidden = comparer.hidden = keeper.hidden = clearer.hidden = nexter.hidden = true;
      resized((ratio = 0));
    },
    // A frame of the sheet that is being made; none is the end of it, whether or not it came to one.
    live(blob) {
      if (!blob && !grid.hidden) return;
      grid.hidden = Boolean(blob);
      image.src = blob ? URL.createObjectURL(blob) : shown;
    },
    // The numbers that lie on the tray.
    star: (numbers) => buttons.forEach((b, k) => b.classList.toggle("swd-kept", numbers.includes(k + 1))),
    say: (text) => (status.title = status.textContent = text || hint), // the whole of it, where there is no room
  };
}
