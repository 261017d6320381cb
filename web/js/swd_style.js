// How sheets look.
document.head.appendChild(document.createElement("style")).textContent = `
.swd-sheet { display: flex; flex-direction: column; width: 100%; font-size: 13px; }
.swd-page { position: relative; flex: none; overflow: hidden; border-radius: 4px; }
.swd-page > img { display: block; width: 100%; height: 100%; }
.swd-grid, .swd-closer { position: absolute; inset: 0; display: grid; }
.swd-sheet button { all: unset; box-sizing: border-box; cursor: pointer; border-radius: 6px; }
.swd-sheet button:focus-visible { outline: 3px solid #ffb35a; outline-offset: -3px; }
.swd-page { container-type: inline-size; }
.swd-heading {
  position: absolute; inset-inline: 0; padding: 0 8px; overflow: hidden; white-space: nowrap; text-overflow: ellipsis;
  color: #f2f2f2; background: #1e2227; pointer-events: none;
}
.swd-grid button:hover { box-shadow: inset 0 0 0 2px #8cf8; }
.swd-grid button[aria-pressed="true"] { box-shadow: inset 0 0 0 4px #5ab0ff; background: #5ab0ff22; }
.swd-grid .swd-kept { position: relative; }
.swd-grid .swd-kept::after {
  content: "★"; position: absolute; top: 4px; right: 8px; color: #ffd35a; font-size: 20px; text-shadow: 0 0 3px #000;
}
.swd-closer { grid-auto-flow: column; grid-auto-columns: 1fr; gap: 4px; background: #1e2227; }
.swd-sheet[hidden], .swd-page[hidden], .swd-grid[hidden], .swd-closer[hidden], .swd-sheet button[hidden] { display: none; }
.swd-pane { display: flex; flex-direction: column; min-width: 0; cursor: zoom-in; border: 3px solid #0000; }
.swd-pane.swd-marked { border-color: #5ab0ff; }
.swd-pane > div { flex: 1; min-height: 0; background-repeat: no-repeat; }
.swd-pane > p { margin: 0; padding: 3px 6px; color: #f2f2f2; font-size: 14px; line-height: 1.3; }
.swd-bar { display: flex; flex: none; flex-wrap: wrap; align-items: center; gap: 2px 6px; min-height: 34px; }
.swd-bar button { padding: 3px 9px; white-space: nowrap; color: #f2f2f2; background: #3a4048; }
.swd-bar button:first-child { background: #2868a8; }
.swd-bar button:disabled { opacity: 0.5; cursor: default; }
[data-testid^="node-body"]:has(.swd-sheet) > :is(img[src^="blob:"], img[src^="blob:"] + *) { display: none; }
.swd-bar span { flex: 1 0 100%; min-width: 0; overflow: hidden; white-space: nowrap; text-overflow: ellipsis; }
`;
