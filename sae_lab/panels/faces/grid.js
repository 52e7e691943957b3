// A table: click or Enter chooses a row, Ctrl adds, Shift takes all between; a click on a heading sorts.
const STYLE = `
.sae-grid { overflow: auto; max-height: 22rem; font-size: var(--jp-ui-font-size1, 13px); outline: none; }
.sae-grid table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
.sae-grid th, .sae-grid td { padding: 0.2rem 0.6rem; text-align: left; white-space: nowrap; max-width: 28rem;
  overflow: hidden; text-overflow: ellipsis; border-bottom: 1px solid var(--jp-border-color2, #ddd); }
.sae-grid .number { text-align: right; }
.sae-grid th { position: sticky; top: 0; background: var(--jp-layout-color1, #fff); cursor: pointer; user-select: none; }
.sae-grid tbody tr { cursor: pointer; }
.sae-grid tbody tr:hover { background: var(--jp-layout-color2, #eee); }
.sae-grid tr[aria-selected="true"] { background: rgba(33, 150, 243, 0.28); }
.sae-grid tr.on-top td { font-weight: 600; }
.sae-grid tr:focus { outline: 2px solid var(--jp-brand-color1, #1976d2); outline-offset: -2px; }
.sae-grid .aside { color: var(--jp-ui-font-color2, #616161); padding: 0.4rem 0.6rem; }`;

export function ordered(rows, column, down) {
  if (column < 0) return rows;
  const key = (row) => (Array.isArray(row[column + 1]) ? row[column + 1][0] : row[column + 1]);
  const known = rows.filter((row) => key(row) !== null && key(row) !== "");
  const others = rows.filter((row) => key(row) === null || key(row) === "");
  known.sort((a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0) * (down ? -1 : 1));
  return [...known, ...others];
}

export function chosenAfter(chosen, labels, at, { add, reach }, from) {
  const label = labels[at];
  if (reach && from >= 0) return labels.slice(Math.min(at, from), Math.max(at, from) + 1);
  if (!add) return [label];
  return chosen.includes(label) ? chosen.filter((other) => other !== label) : [...chosen, label];
}

function text(tag, content, parent, kind) {
  const node = document.createElement(tag);
  node.textContent = content;
  if (kind) node.className = kind;
  parent.append(node);
  return node;
}

export default {
  render({ model, el }) {
    const style = text("style", STYLE, el);
    const box = document.createElement("div");
    box.className = "sae-grid";
    el.append(box);
    let column = -1, down = true, from = -1;

    const shown = () => ordered(model.get("rows"), column, down);
    const choose = (at, event) => {
      const labels = shown().map((row) => row[0]);
      const how = { add: event.ctrlKey || event.metaKey, reach: event.shiftKey };
      model.set("chosen", chosenAfter(model.get("chosen"), labels, at, how, from));
      model.set("on_top", labels[at]);
      model.save_changes();
      from = at;
      box.querySelectorAll("tbody tr")[at]?.focus();
    };
    const walk = (event, at) => {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (step === undefined && event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      event.stopPropagation();
      if (step === undefined) choose(at, event);
      else box.querySelectorAll("tbody tr")[at + step]?.focus();
    };
    const draw = () => {
      const [columns, rows, chosen] = [model.get("columns"), shown(), new Set(model.get("chosen"))];
      const place = [box.scrollTop, [...box.querySelectorAll("tbody tr")].indexOf(document.activeElement)];
      box.replaceChildren();
      if (!rows.length) return void text("div", model.get("empty"), box, "aside");
      const table = text("table", "", box);
      const head = text("tr", "", text("thead", "", table));
      columns.forEach(([name, number], i) => {
        const mark = i === column ? (down ? " \u25be" : " \u25b4") : "";
        const cell = text("th", name + mark, head, number ? "number" : "");
        cell.setAttribute("aria-sort", i === column ? (down ? "descending" : "ascending") : "none");
        cell.tabIndex = 0;
        const turn = () => { down = i === column ? !down : number; column = i; from = -1; draw(); };
        cell.onclick = turn;
        cell.onkeydown = (event) => { if (event.key === "Enter") { event.stopPropagation(); turn(); } };
      });
      const body = text("tbody", "", table);
      rows.forEach(([label, ...cells], at) => {
        const row = text("tr", "", body);
        row.tabIndex = at ? -1 : 0;
        row.setAttribute("aria-selected", chosen.has(label));
        if (label === model.get("on_top")) row.className = "on-top";
        cells.forEach((cell, i) => {
          const said = Array.isArray(cell) ? cell[1] : cell;
          text("td", said, row, columns[i][1] ? "number" : "").title = said;
        });
        row.onclick = (event) => choose(at, event);
        row.onkeydown = (event) => walk(event, at);
      });
      if (model.get("more")) text("div", `and ${model.get("more").toLocaleString("en")} more: filter to see them`, box, "aside");
      box.scrollTop = place[0];
      if (place[1] >= 0) box.querySelectorAll("tbody tr")[place[1]]?.focus();
    };
    const names = ["rows", "columns", "more", "empty", "chosen", "on_top"];
    let waiting = 0;
    const later = () => { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(draw); };
    names.forEach((name) => model.on(`change:${name}`, later));
    draw();
    return () => { names.forEach((name) => model.off(`change:${name}`, later)); style.remove(); };
  },
};
