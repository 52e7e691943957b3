// Points on a plane in a notebook: Python keeps what they mean, this draws them and says which were touched.
// What is exported by name is pure; tests call it in the page.

const NONE = -1; // no point
const MISSING = 255; // the code of a point without a colour
const REACH = 8; // pixels around the pointer in which a point is hit
const DIM = 0.12; // opacity of what is not selected, where something is
const SOLID = 0.8; // opacity of the rest, so that crowds show
const FAINT = 0.5; // of that, for points without a colour, so that they do not hide those that have one
const HOME = { x: 0, y: 0, zoom: 0.95 };
const LIVE = 8; // WebGL contexts on a page; at about 16 a browser takes one away without asking
const KEYS = "Arrow keys pan, plus and minus zoom, 0 resets the view, L switches the lasso, Escape clears the selection.";
// viridis at nine places; between them it is nearly straight
const VIRIDIS = ["440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80", "5ec962", "addc30", "fde725"].map(rgb);

export const floats = (view) => new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
export const octets = (view) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);

export function rgb(hex) {
  const number = parseInt(hex.replace("#", ""), 16);
  return [number >> 16, (number >> 8) & 255, number & 255];
}

/** The colour of a share of the scale, 0 to 1. */
export function viridis(share) {
  const place = Math.min(1, Math.max(0, share)) * (VIRIDIS.length - 1);
  const low = Math.min(Math.floor(place), VIRIDIS.length - 2);
  return VIRIDIS[low].map((part, i) => Math.round(part + (VIRIDIS[low + 1][i] - part) * (place - low)));
}

/** [r, g, b] of all 256 codes; each scale ends, and each hue is lightened, where the ground would swallow it. */
export function palette(key, dark) {
  const colours = new Uint8Array(4 * 256);
  const own = key.colours.map(rgb).map((hue) => (dark ? hue.map((part) => Math.round(part + (255 - part) * 0.3)) : hue));
  for (let code = 0; code < MISSING; code++) {
    const share = code / (MISSING - 1);
    colours.set(key.names ? own[code % own.length] : viridis(dark ? 0.15 + 0.85 * share : 0.92 * share), 4 * code);
  }
  colours.set([128, 128, 128], 4 * MISSING);
  return colours;
}

/** Which points lie in which square of [-1, 1]²: those of square c are order[start[c]] to order[start[c + 1] - 1]. */
export function grid(xy, squares = 256) {
  const n = xy.length / 2;
  const line = (value) => Math.min(squares - 1, Math.max(0, Math.floor(((value + 1) / 2) * squares)));
  const start = new Uint32Array(squares * squares + 1);
  const square = new Uint32Array(n);
  for (let i = 0; i < n; i++) {
    square[i] = line(xy[2 * i]) + squares * line(xy[2 * i + 1]);
    start[square[i] + 1]++;
  }
  for (let c = 0; c < squares * squares; c++) start[c + 1] += start[c];
  const order = new Uint32Array(n);
  const next = start.slice();
  for (let i = 0; i < n; i++) order[next[square[i]]++] = i;
  return { squares, line, start, order };
}

/** The point nearest to (x, y) within a radius; NONE if there is none. */
export function nearest({ squares, line, start, order }, xy, x, y, radius) {
  let found = NONE;
  let least = radius * radius;
  for (let row = line(y - radius); row <= line(y + radius); row++) {
    const from = start[row * squares + line(x - radius)];
    const to = start[row * squares + line(x + radius) + 1];
    for (let at = from; at < to; at++) {
      const i = order[at];
      const far = (xy[2 * i] - x) ** 2 + (xy[2 * i + 1] - y) ** 2;
      if (far < least) [found, least] = [i, far];
    }
  }
  return found;
}

/** Whether (x, y) is in a polygon of [x, y] corners, by the parity of the edges to its right. */
export function inside(corners, x, y) {
  let odd = false;
  for (let j = 0, k = corners.length - 1; j < corners.length; k = j++) {
    const [xj, yj] = corners[j];
    const [xk, yk] = corners[k];
    if (yj > y !== yk > y && x < ((xk - xj) * (y - yj)) / (yk - yj) + xj) odd = !odd;
  }
  return odd;
}

/** A bit per point, set for those in the polygon. */
export function lassoed(xy, corners) {
  const bits = new Uint8Array(Math.ceil(xy.length / 16));
  const [xs, ys] = [corners.map((corner) => corner[0]), corners.map((corner) => corner[1])];
  const [left, right] = [Math.min(...xs), Math.max(...xs)];
  const [bottom, top] = [Math.min(...ys), Math.max(...ys)];
  for (let i = 0; i < xy.length / 2; i++) {
    const x = xy[2 * i];
    const y = xy[2 * i + 1];
    if (x < left || x > right || y < bottom || y > top) continue;
    if (inside(corners, x, y)) bits[i >> 3] |= 1 << (i & 7);
  }
  return bits;
}

/** A byte per point, 1 where its bit is set. */
export function unpacked(bits, n) {
  const bytes = new Uint8Array(n);
  if (bits.length) for (let i = 0; i < n; i++) bytes[i] = (bits[i >> 3] >> (i & 7)) & 1;
  return bytes;
}

const VERTEX = `#version 300 es
in vec2 xy;
in float codes, sizes, chosen;
uniform vec2 centre, scale;
uniform float pixels, rest, solid, faint;
uniform sampler2D colours;
flat out vec4 colour;
void main() {
  gl_Position = vec4((xy - centre) * scale, 0.0, 1.0);
  gl_PointSize = max(1.0, sizes * pixels * (1.0 + 0.4 * chosen));
  float alpha = chosen > 0.5 ? 1.0 : solid * rest * (codes > 254.5 ? faint : 1.0);
  colour = vec4(texelFetch(colours, ivec2(int(codes), 0), 0).rgb * alpha, alpha);
}`;
const FRAGMENT = `#version 300 es
precision mediump float;
flat in vec4 colour;
out vec4 seen;
void main() {
  vec2 off = gl_PointCoord - 0.5;
  if (dot(off, off) > 0.25) discard;
  seen = colour;
}`;

/** Draws on a canvas by WebGL2; null where there is none. */
function webgl(canvas) {
  const gl = canvas.getContext("webgl2", { antialias: false });
  if (!gl || gl.isContextLost()) return null;
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) return null;
  gl.useProgram(program);
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
  gl.enable(gl.BLEND);
  gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  const at = (name) => gl.getUniformLocation(program, name);
  const buffers = {};
  let count = 0;
  return {
    kind: "webgl",
    load(name, array) {
      if (name === "colours") {
        gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, 256, 1, 0, gl.RGBA, gl.UNSIGNED_BYTE, array);
        return;
      }
      gl.bindBuffer(gl.ARRAY_BUFFER, (buffers[name] ??= gl.createBuffer()));
      gl.bufferData(gl.ARRAY_BUFFER, array, gl.DYNAMIC_DRAW);
      const place = gl.getAttribLocation(program, name);
      gl.enableVertexAttribArray(place);
      if (name === "xy") gl.vertexAttribPointer(place, 2, gl.FLOAT, false, 0, 0);
      else gl.vertexAttribPointer(place, 1, gl.UNSIGNED_BYTE, false, 0, 0);
      if (name === "xy") count = array.length / 2;
    },
    draw({ centre, scale, pixels, rest }) {
      gl.viewport(0, 0, canvas.width, canvas.height);
      gl.clear(gl.COLOR_BUFFER_BIT);
      gl.uniform2f(at("centre"), ...centre);
      gl.uniform2f(at("scale"), ...scale);
      gl.uniform1f(at("pixels"), pixels);
      gl.uniform1f(at("rest"), rest);
      gl.uniform1f(at("solid"), SOLID);
      gl.uniform1f(at("faint"), FAINT);
      gl.drawArrays(gl.POINTS, 0, count);
    },
    lose: () => gl.getExtension("WEBGL_lose_context")?.loseContext(),
  };
}

/** The same on a 2D canvas, as squares; slower. */
function flat(canvas) {
  const context = canvas.getContext("2d");
  const kept = {};
  let order = [];
  const draw = ({ centre, scale, pixels }, chosen, alpha) => {
    const { xy, codes, sizes, colours } = kept;
    let last = NONE;
    for (const i of order) {
      if (kept.chosen[i] !== chosen) continue;
      const size = Math.max(1, sizes[i] * pixels * (1 + 0.4 * chosen));
      const x = (((xy[2 * i] - centre[0]) * scale[0] + 1) / 2) * canvas.width - size / 2;
      const y = ((1 - (xy[2 * i + 1] - centre[1]) * scale[1]) / 2) * canvas.height - size / 2;
      if (x < -size || y < -size || x > canvas.width || y > canvas.height) continue;
      if (codes[i] !== last) {
        context.fillStyle = css(colours, (last = codes[i]));
        context.globalAlpha = chosen || last !== MISSING ? alpha : alpha * FAINT;
      }
      context.fillRect(x, y, size, size);
    }
  };
  return {
    kind: "canvas",
    load(name, array) {
      kept[name] = array;
      if (name === "codes") order = Uint32Array.from(array.keys()).sort((i, j) => array[i] - array[j] || i - j);
    },
    draw(how) {
      context.clearRect(0, 0, canvas.width, canvas.height);
      draw(how, 0, SOLID * how.rest);
      if (how.rest < 1) draw(how, 1, 1);
    },
    lose() {},
  };
}

const css = (colours, code) => `rgb(${colours.subarray(4 * code, 4 * code + 3).join(", ")})`;
const said = (number) => String(Number(number.toPrecision(3)));
const counted = (number) => number.toLocaleString("en");

function make(tag, name, text = "") {
  const element = document.createElement(tag);
  element.className = `sae-cloud-${name}`;
  element.textContent = text;
  return element;
}

class Cloud {
  constructor(model, el) {
    Object.assign(this, { model, view: { ...HOME }, labels: new Map(), hovered: NONE, drag: null, path: null });
    Object.assign(this, { data: {}, count: 0, frames: 0, lassoing: false, closed: false });
    this.build(el);
    this.place();
    this.choose();
    this.paint();
    this.start();
    this.listen();
  }

  build(el) {
    this.root = make("div", "root");
    this.legend = make("div", "legend");
    this.bar = make("div", "bar");
    this.bar.setAttribute("role", "toolbar");
    this.lasso = this.button("Lasso", "Select by drawing around points (L, or drag with Shift)", () => this.toggle());
    this.lasso.setAttribute("aria-pressed", "false");
    this.button("+", "Zoom in (+)", () => this.zoom(1.4));
    this.button("−", "Zoom out (-)", () => this.zoom(1 / 1.4));
    this.button("Reset", "The whole map (0)", () => this.home());
    this.button("Clear", "Select nothing (Escape)", () => this.select(new Uint8Array(0)));
    this.button("PNG", "Download the picture", () => this.download());
    this.stage = make("div", "stage");
    this.stage.tabIndex = 0;
    this.stage.setAttribute("role", "application");
    this.stage.setAttribute("aria-label", `Map of points. ${KEYS}`);
    this.over = make("canvas", "over");
    this.tip = make("div", "tip");
    this.tip.setAttribute("role", "tooltip");
    this.status = make("div", "status");
    this.live = make("div", "live");
    for (const element of [this.status, this.live]) element.setAttribute("aria-live", "polite");
    for (const element of [this.stage, ...this.bar.children]) {
      element.dataset.lmSuppressShortcuts = "true"; // or JupyterLab takes d d, pressed here, for: delete the cell
    }
    const head = make("div", "head");
    head.append(this.legend, this.bar);
    this.stage.append(this.over, this.tip);
    this.root.append(head, this.stage, this.status, this.live);
    el.classList.add("sae-cloud");
    el.append(this.root);
  }

  button(text, title, does) {
    const button = make("button", "button", text);
    button.type = "button";
    button.title = title;
    button.setAttribute("aria-label", title);
    button.addEventListener("click", does);
    this.bar.append(button);
    return button;
  }

  listen() {
    const { model, over, stage } = this;
    model.on("change:_xy", () => this.place());
    model.on("change:_codes change:_key", () => this.paint());
    model.on("change:selected", () => this.choose());
    model.on("change:clicked", () => this.mark());
    model.on("change:height", () => this.resize());
    model.on("msg:custom", (message) => this.told(message));
    over.addEventListener("pointerdown", (event) => this.down(event));
    over.addEventListener("pointermove", (event) => this.move(event));
    over.addEventListener("pointerup", (event) => this.up(event));
    over.addEventListener("pointercancel", () => this.drop());
    over.addEventListener("pointerleave", () => this.hover(NONE));
    stage.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.root.addEventListener("keydown", (event) => this.key(event));
    this.sized = new ResizeObserver(() => {
      if (this.isDark() !== this.dark) this.paint();
      this.resize();
    });
    this.sized.observe(stage);
    this.themed = new MutationObserver(() => this.isDark() !== this.dark && this.paint());
    this.themed.observe(document.body, { attributes: true });
  }

  /** Takes a canvas into use, by WebGL2 if it is there and there are not too many; the oldest makes room. */
  start(fast = true) {
    const canvas = make("canvas", "points");
    const old = this.points;
    if (old) old.replaceWith(canvas);
    else this.stage.prepend(canvas);
    this.points = canvas;
    this.painter = (fast && webgl(canvas)) || flat(canvas);
    this.root.dataset.drawnBy = this.painter.kind;
    for (const [name, array] of Object.entries(this.data)) this.painter.load(name, array);
    if (this.painter.kind === "webgl") {
      canvas.addEventListener("webglcontextlost", (event) => this.lost(event, canvas));
      canvas.addEventListener("webglcontextrestored", () => this.closed || this.start());
      const live = (globalThis.__sae_lab_clouds__ ??= []);
      live.push(this);
      if (live.length > LIVE) live[0].leave();
    }
    this.resize();
  }

  lost(event, canvas) {
    event.preventDefault(); // or it would never be restored
    this.leave(false);
    if (!this.closed && canvas === this.points) this.start(false);
  }

  leave(lose = true) {
    const live = globalThis.__sae_lab_clouds__ ?? [];
    if (live.includes(this)) live.splice(live.indexOf(this), 1);
    if (lose) this.painter.lose();
  }

  close() {
    this.closed = true;
    this.leave();
    this.sized.disconnect();
    this.themed.disconnect();
    clearTimeout(this.asking);
    cancelAnimationFrame(this.waiting);
  }

  // What Python says

  place() {
    const xy = floats(this.model.get("_xy"));
    const given = octets(this.model.get("_sizes"));
    const sizes = given.length === 1 ? new Uint8Array(xy.length / 2).fill(given[0]) : given;
    this.grid = grid(xy);
    this.labels.clear();
    this.load({ xy, sizes });
  }

  paint() {
    const key = this.model.get("_key");
    this.dark = this.isDark();
    this.load({ colours: palette(key, this.dark), codes: octets(this.model.get("_codes")) });
    this.explain(key);
  }

  isDark() {
    const ground = getComputedStyle(this.stage).backgroundColor.match(/[\d.]+/g); // null until it is in the page
    const [red, green, blue] = (ground ?? [255, 255, 255]).map(Number);
    return 0.299 * red + 0.587 * green + 0.114 * blue < 128;
  }

  choose() {
    const n = this.data.xy.length / 2;
    const chosen = unpacked(octets(this.model.get("selected")), n);
    this.count = chosen.reduce((sum, one) => sum + one, 0);
    this.status.textContent = this.count
      ? `${counted(this.count)} of ${counted(n)} points selected`
      : `${counted(n)} points`;
    this.load({ chosen });
  }

  told({ label, point }) {
    if (label === undefined) return;
    if (this.labels.size > 1000) this.labels.clear();
    this.labels.set(point, label);
    if (this.hovered === point) this.hint();
  }

  load(arrays) {
    Object.assign(this.data, arrays);
    if (this.painter) for (const [name, array] of Object.entries(arrays)) this.painter.load(name, array);
    this.later();
  }

  /** The legend: a swatch per name, or a bar of the numbers. */
  explain({ names, title, unit, low, high }) {
    const { colours, codes } = this.data;
    const swatch = (code, name) => {
      const item = make("span", "item");
      const spot = make("i", "swatch");
      spot.style.background = css(colours, code);
      item.append(spot, make("span", "name", name));
      return item;
    };
    const parts = [];
    if (title) parts.push(make("b", "title", unit ? `${title} [${unit}]` : title));
    if (names) parts.push(...names.map((name, code) => swatch(code, name)));
    else {
      const scale = make("i", "scale");
      const stops = Array.from({ length: 12 }, (_, i) => css(colours, Math.round((i / 11) * (MISSING - 1))));
      scale.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
      parts.push(make("span", "low", said(low)), scale, make("span", "high", said(high)));
    }
    if (parts.length && codes.includes(MISSING)) parts.push(swatch(MISSING, "none"));
    this.legend.replaceChildren(...parts);
  }

  // Where things are

  get span() {
    return (this.view.zoom * Math.min(this.width, this.height)) / 2; // pixels to a unit
  }

  at(i) {
    const [x, y] = [this.data.xy[2 * i], this.data.xy[2 * i + 1]];
    return [this.width / 2 + (x - this.view.x) * this.span, this.height / 2 - (y - this.view.y) * this.span];
  }

  under([left, top]) {
    return [this.view.x + (left - this.width / 2) / this.span, this.view.y - (top - this.height / 2) / this.span];
  }

  hit(pixel) {
    return nearest(this.grid, this.data.xy, ...this.under(pixel), REACH / this.span);
  }

  pixel(event) {
    const box = this.over.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  // Drawing

  resize() {
    this.stage.style.height = `${this.model.get("height")}px`;
    const { clientWidth, clientHeight } = this.stage;
    if (!clientWidth || !clientHeight) return;
    [this.width, this.height, this.dots] = [clientWidth, clientHeight, Math.min(2, window.devicePixelRatio || 1)];
    for (const canvas of [this.points, this.over]) {
      canvas.width = Math.round(clientWidth * this.dots);
      canvas.height = Math.round(clientHeight * this.dots);
    }
    this.draw();
  }

  later() {
    this.waiting ||= requestAnimationFrame(() => this.draw());
  }

  draw() {
    this.waiting = 0;
    if (!this.width || !this.painter) return;
    const grown = Math.min(4, Math.sqrt(Math.max(1, this.view.zoom)));
    this.painter.draw({
      centre: [this.view.x, this.view.y],
      scale: [(2 * this.span) / this.width, (2 * this.span) / this.height],
      pixels: (this.dots * grown) / 8,
      rest: this.count ? DIM : 1,
    });
    this.mark();
    this.root.dataset.frames = ++this.frames;
  }

  /** The rings around the hovered and the clicked point, and the lasso. */
  mark() {
    if (!this.width) return;
    const context = this.over.getContext("2d");
    context.setTransform(this.dots, 0, 0, this.dots, 0, 0);
    context.clearRect(0, 0, this.width, this.height);
    context.strokeStyle = getComputedStyle(this.stage).color;
    const clicked = this.model.get("clicked");
    for (const [i, radius, width] of [[this.hovered, 7, 1.5], [clicked, 8, 2.5]]) {
      if (i < 0 || i >= this.data.xy.length / 2) continue;
      context.beginPath();
      context.arc(...this.at(i), radius, 0, 7);
      context.lineWidth = width;
      context.stroke();
    }
    if (!this.path) return;
    context.beginPath();
    for (const corner of this.path) context.lineTo(...corner);
    context.closePath();
    context.lineWidth = 1.5;
    context.setLineDash([5, 4]);
    context.stroke();
    context.setLineDash([]);
    context.fillStyle = "rgba(128, 128, 128, 0.15)";
    context.fill();
  }

  // What a hand does

  down(event) {
    if (event.button !== 0) return;
    this.over.setPointerCapture(event.pointerId);
    this.stage.focus({ preventScroll: true });
    const pixel = this.pixel(event);
    this.drag = { pixel, lasso: this.lassoing || event.shiftKey, moved: false };
    if (this.drag.lasso) this.path = [pixel];
  }

  move(event) {
    const pixel = this.pixel(event);
    if (!this.drag) {
      this.hover(this.hit(pixel));
      return;
    }
    const [right, down] = [pixel[0] - this.drag.pixel[0], pixel[1] - this.drag.pixel[1]];
    if (!this.drag.moved && Math.hypot(right, down) < 3) return; // a click shakes
    Object.assign(this.drag, { moved: true, pixel });
    if (this.drag.lasso) {
      this.path.push(pixel);
      this.mark();
    } else this.pan(-right, down);
  }

  up(event) {
    const { drag, path } = this;
    this.drop();
    if (!drag) return;
    if (drag.lasso && path.length > 2) {
      this.select(lassoed(this.data.xy, path.map((corner) => this.under(corner))));
    } else if (!drag.moved) {
      this.tell({ clicked: this.hit(this.pixel(event)) });
    }
  }

  drop() {
    this.drag = this.path = null;
    this.mark();
  }

  wheel(event) {
    const asked = event.ctrlKey || event.metaKey || this.stage.contains(document.activeElement);
    if (!asked) return; // the page scrolls
    event.preventDefault();
    this.zoom(Math.exp(-event.deltaY * 0.0015), this.pixel(event));
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = 0.1 * Math.min(this.width, this.height);
    const does = {
      ArrowLeft: () => this.pan(-step, 0),
      ArrowRight: () => this.pan(step, 0),
      ArrowUp: () => this.pan(0, step),
      ArrowDown: () => this.pan(0, -step),
      "+": () => this.zoom(1.4),
      "=": () => this.zoom(1.4),
      "-": () => this.zoom(1 / 1.4),
      0: () => this.home(),
      l: () => this.toggle(),
      Escape: () => {
        this.drop();
        this.select(new Uint8Array(0));
      },
    }[event.key.length > 1 ? event.key : event.key.toLowerCase()];
    if (!does) return;
    event.preventDefault();
    event.stopPropagation();
    does();
  }

  pan(right, up) {
    this.view.x += right / this.span;
    this.view.y += up / this.span;
    this.later();
  }

  zoom(factor, pixel = [this.width / 2, this.height / 2]) {
    const [x, y] = this.under(pixel);
    this.view.zoom = Math.min(500, Math.max(0.4, this.view.zoom * factor));
    const [now_x, now_y] = this.under(pixel);
    this.view.x += x - now_x; // what is under the pointer stays there
    this.view.y += y - now_y;
    this.later();
  }

  home() {
    this.view = { ...HOME };
    this.later();
  }

  toggle() {
    this.lassoing = !this.lassoing;
    this.lasso.setAttribute("aria-pressed", String(this.lassoing));
    this.stage.classList.toggle("sae-cloud-lassoing", this.lassoing);
  }

  select(bits) {
    this.model.set("selected", bits);
    this.tell({ selected: true }, [bits]);
  }

  hover(i) {
    if (i === this.hovered) return;
    this.hovered = i;
    clearTimeout(this.asking);
    if (i !== NONE && !this.labels.has(i)) {
      this.asking = setTimeout(() => this.tell({ ask: i }), 40);
    }
    this.hint();
    this.mark();
  }

  /** The label beside the hovered point: text, never markup. */
  hint() {
    const { tip, hovered, labels } = this;
    tip.style.display = hovered === NONE ? "none" : "block";
    if (hovered === NONE) return;
    tip.textContent = labels.get(hovered) ?? "…";
    if (labels.has(hovered)) this.live.textContent = labels.get(hovered);
    const [left, top] = this.at(hovered);
    const beside = (where, size, room) => (where + 12 + size > room ? Math.max(0, where - 12 - size) : where + 12);
    tip.style.left = `${beside(left, tip.offsetWidth, this.width)}px`;
    tip.style.top = `${beside(top, tip.offsetHeight, this.height)}px`;
  }

  tell(message, buffers = []) {
    try {
      this.model.send(message, undefined, buffers);
    } catch {
      this.status.textContent = "No kernel hears this map any more: run its cell again.";
    }
  }

  download() {
    const canvas = make("canvas", "picture");
    [canvas.width, canvas.height] = [this.points.width, this.points.height];
    const context = canvas.getContext("2d");
    context.fillStyle = getComputedStyle(this.stage).backgroundColor;
    context.fillRect(0, 0, canvas.width, canvas.height);
    this.draw(); // a frame of WebGL is gone once it is shown
    context.drawImage(this.points, 0, 0);
    canvas.toBlob((blob) => {
      const link = make("a", "link");
      link.href = URL.createObjectURL(blob);
      link.download = "points.png";
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    });
  }
}

export default {
  render({ model, el }) {
    const cloud = new Cloud(model, el);
    return () => cloud.close();
  },
};
