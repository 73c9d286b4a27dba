// One module for the live widgets (anywidget calls `render`) and for pages without a kernel (see explore.player).
// First what is pure and tested by value, then drawing on canvases, then the widgets.

// ------------------------------------------------------------------ packs

const MAGIC = 0x314d5254;  // "TRM1", little-endian
const TYPES = { '|u1': Uint8Array, '|b1': Uint8Array, '|i1': Int8Array, '<u2': Uint16Array, '<i2': Int16Array, '<i4': Int32Array, '<f4': Float32Array };

/** {about, arrays} of a pack; every array is a typed array with `shape`. */
export function unpack(data) {
  const bytes = data instanceof ArrayBuffer ? new Uint8Array(data) : new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.byteLength < 8 || view.getUint32(0, true) !== MAGIC) throw new Error('this is not a pack');
  const length = view.getUint32(4, true), head = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length))), arrays = {};
  for (const { name, dtype, shape, offset } of head.arrays) {
    const Type = TYPES[dtype], count = shape.reduce((a, b) => a * b, 1), start = 8 + length + offset;
    const part = bytes.slice(start, start + count * Type.BYTES_PER_ELEMENT);  // a copy: aligned, and its own buffer
    arrays[name] = Object.assign(new Type(part.buffer), { shape });
  }
  return { about: head.about, arrays };
}

/** Bytes, also those of a gzip stream. */
export async function inflate(data) {
  const bytes = data instanceof ArrayBuffer ? new Uint8Array(data) : new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes;
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** A pack as a trace: sizes, and for every update its latent and the same latent's update before. */
export function readTrace({ about, arrays }) {
  const [steps, cells] = arrays.answers.shape, U = about.schedule.length, T = steps * U;
  const kind = Uint8Array.from({ length: T }, (_, u) => about.latents.indexOf(about.schedule[u % U][0]));
  const before = new Int32Array(T).fill(-1), last = about.latents.map(() => -1);
  for (let u = 0; u < T; u++) { before[u] = last[kind[u]]; last[kind[u]] = u; }
  return { ...about, arrays, steps, cells, U, T, kind, before, inner: !!arrays.inner_answers, cache: {} };
}

/** The update whose decode is shown at update u: the last one that wrote the latent `lens` ('' is the one just updated); -1 for none. */
export function sourceOf(trace, u, lens) {
  if (!lens) return u;
  const want = trace.latents.indexOf(lens);
  while (u >= 0 && trace.kind[u] !== want) u--;
  return u;
}

/** Updates to stop at: 'step', 'cycle' (whenever the answer's latent was written) or 'update'. */
export function framesOf(trace, grain) {
  const all = Array.from({ length: trace.T }, (_, u) => u), want = trace.latents.indexOf(trace.readout);
  if (grain === 'step' || !trace.inner) return all.filter(u => (u + 1) % trace.U === 0);
  return grain === 'cycle' ? all.filter(u => trace.kind[u] === want) : all;
}

/** Index of the frame nearest to update u, not after it where there is one. */
export function frameAt(frames, u) {
  let i = 0;
  while (i + 1 < frames.length && frames[i + 1] <= u) i++;
  return i;
}

/** The update of `other` at the same time in ACT steps as update u of `trace`. */
export function aligned(trace, other, u) {
  return Math.max(0, Math.min(other.T - 1, Math.round((u + 1) * other.U / trace.U) - 1));
}

/** An update in words. */
export function nameOf(trace, u) {
  const [latent, h, l] = trace.schedule[u % trace.U];
  return `step ${Math.floor(u / trace.U) + 1} · H ${h + 1} · L ${l + 1} · ${latent}`;
}

/** Tokens, certainty (0 to 1) and the tokens before, at update u through a lens. */
export function readAt(trace, u, lens) {
  const { arrays: a, cells: L } = trace, part = (x, i) => x.subarray(i * L, (i + 1) * L);
  if (!trace.inner) {
    const s = Math.floor(u / trace.U);
    return { tokens: part(a.answers, s), sure: part(a.confidence, s), before: s ? part(a.answers, s - 1) : null, source: u };
  }
  const source = sourceOf(trace, u, lens);
  if (source < 0) return { tokens: a.inputs, sure: null, before: null, source };
  const b = trace.before[source], sure = Float32Array.from(part(a.inner_confidence, source), c => c / 255);
  return { tokens: part(a.inner_answers, source), sure, before: b < 0 ? null : part(a.inner_answers, b), source };
}

/** Where tokens differ from the solution (1) or not (0); null where it is not known. */
export function wrongAt(trace, tokens) {
  const s = trace.arrays.solution;
  return s ? Uint8Array.from(tokens, (t, i) => s[i] !== 0 && t !== s[i]) : null;
}

/** 1 for cells that are part of the puzzle. */
export function givensOf(trace) {
  const blank = trace.look.blank;
  return trace.cache.givens ||= Uint8Array.from(trace.arrays.inputs, t => blank !== null && t !== blank);
}

/** Wrong and changed cells at every update, through a lens. */
export function counts(trace, lens) {
  const key = 'counts' + lens;
  if (trace.cache[key]) return trace.cache[key];
  const wrong = trace.arrays.solution ? new Float32Array(trace.T) : null, changed = new Float32Array(trace.T), sure = new Float32Array(trace.T);
  for (let u = 0; u < trace.T; u++) {
    const now = readAt(trace, u, lens);
    if (wrong) wrong[u] = wrongAt(trace, now.tokens).reduce((a, b) => a + b, 0);
    if (now.before) changed[u] = now.tokens.reduce((n, t, i) => n + (t !== now.before[i]), 0);
    if (now.sure) sure[u] = now.sure.reduce((a, b) => a + b, 0) / trace.cells;
  }
  return trace.cache[key] = { wrong, changed, sure };
}

/** Cells in the order in which their answer stopped changing. */
export function restingOrder(trace) {
  const { answers } = trace.arrays, L = trace.cells, rest = new Int32Array(L);
  for (let s = 1; s < trace.steps; s++) for (let c = 0; c < L; c++) if (answers[s * L + c] !== answers[(s - 1) * L + c]) rest[c] = s;
  return Array.from({ length: L }, (_, c) => c).sort((a, b) => rest[a] - rest[b] || a - b);
}

/** [{update, token}] wherever a cell's answer becomes another, through a lens. */
export function flips(trace, cell, lens) {
  const found = [];
  for (let u = 0; u < trace.T; u++) {
    const token = readAt(trace, u, lens).tokens[cell];
    if (!found.length || found.at(-1).token !== token) found.push({ update: u, token });
  }
  return found;
}

/** Running mean with exponential weights over about `span` values, without a bias towards the first. */
export function smooth(values, span) {
  const keep = 1 - 1 / Math.max(span, 1);
  let total = 0, weight = 0;
  return values.map(v => { total = keep * total + v; weight = keep * weight + 1; return total / weight; });
}

/** Round numbers between low and high, about n of them. */
export function ticks(low, high, n = 4) {
  if (!(high > low)) return [low];
  const raw = (high - low) / n, unit = 10 ** Math.floor(Math.log10(raw)), step = unit * [1, 2, 5, 10].find(f => f * unit >= raw * .999);
  const found = [];
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-6; v += step) found.push(Math.abs(v) < step * 1e-6 ? 0 : +v.toPrecision(12));
  return found;
}

/** As `ticks`, whole numbers only. */
export const whole = (low, high, n) => ticks(low, high, n).filter(Number.isInteger);

/** Two hex colours mixed: share 0 gives a, 1 gives b. */
export function mix(a, b, share) {
  const p = hex => [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16)), [x, y] = [p(a), p(b)];
  return '#' + x.map((v, i) => Math.round(v + (y[i] - v) * Math.max(0, Math.min(1, share))).toString(16).padStart(2, '0')).join('');
}

/** A colour of a scale of hex colours at share 0 to 1, as [r, g, b]. */
export function ramp(scale, share) {
  const x = Math.max(0, Math.min(1, share || 0)) * (scale.length - 1), i = Math.min(scale.length - 2, Math.floor(x));
  const hex = mix(scale[i], scale[i + 1], x - i);
  return [1, 3, 5].map(k => parseInt(hex.slice(k, k + 2), 16));
}

const short = v => Math.abs(v) >= 1e4 || (v && Math.abs(v) < 1e-4) ? v.toExponential(0).replace('e-', 'e−').replace('e+', 'e') : String(+v.toPrecision(3)).replace('-', '−');
const signed = v => (v < 0 ? '−' : '+') + Math.abs(v).toFixed(1);

// ------------------------------------------------------------------ colours

const LIGHT = { ink: '#1f2328', soft: '#656d76', line: '#d0d7de', faint: '#eaeef2', paper: '#ffffff', card: '#ffffff', given: '#eceff2', answer: '#0b62b0', changed: '#cfe6f7', wrong: '#b8440b', mistaken: '#fbdcc6', unsure: '#9b6fb0', pick: '#d55e00',
  cycle: ['#0b62b0', '#d55e00', '#009e73', '#9b6fb0', '#d9a900', '#56b4e9', '#1f2328'], amount: ['#ffffff', '#d9c6e3', '#9b6fb0', '#3d2a4d'], contrast: ['#0b62b0', '#bcd9ee', '#ffffff', '#f5c9ab', '#b8440b'] };
const DARK = { ink: '#e6edf3', soft: '#9aa4af', line: '#3d444d', faint: '#252b33', paper: '#12161c', card: '#181d24', given: '#2a313a', answer: '#7cc0ff', changed: '#15395a', wrong: '#ffa06a', mistaken: '#57301a', unsure: '#a678bd', pick: '#ff9233',
  cycle: ['#5aa9ff', '#ff8a3d', '#3fcf9f', '#e59ad0', '#ffe066', '#a5d8ff', '#e6edf3'], amount: ['#12161c', '#3d2a4d', '#9b6fb0', '#ecdcf5'], contrast: ['#6cb6ff', '#1d4063', '#12161c', '#6b3714', '#ff9a4d'] };

/** Is the page around us dark? */
export function isDark(body, prefers) {
  const { trmTheme, jpThemeLight, vscodeThemeKind } = body.dataset, names = body.className || '';
  if (trmTheme) return trmTheme === 'dark';
  if (jpThemeLight !== undefined) return jpThemeLight === 'false';
  if (vscodeThemeKind) return !vscodeThemeKind.includes('light');
  if (/quarto-dark|dark-mode|vscode-dark/.test(names)) return true;
  if (/quarto-light|vscode-light/.test(names)) return false;
  return prefers;
}

// ------------------------------------------------------------------ drawing

/** A canvas of a size in CSS pixels, sharp on any screen; drawing is in CSS pixels. */
function fit(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1, w = Math.max(1, Math.round(width * ratio)), h = Math.max(1, Math.round(height * ratio));
  if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
  const ctx = canvas.getContext('2d');
  ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
  ctx.clearRect(0, 0, width, height);
  return ctx;
}

const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif';

function triangle(ctx, x, y, s) { ctx.moveTo(x + s * .74, y); ctx.lineTo(x + s, y); ctx.lineTo(x + s, y + s * .26); ctx.closePath(); }
function diamond(ctx, x, y, s) { ctx.moveTo(x + s * .5, y + s * .2); ctx.lineTo(x + s * .8, y + s * .5); ctx.lineTo(x + s * .5, y + s * .8); ctx.lineTo(x + s * .2, y + s * .5); ctx.closePath(); }
function strike(ctx, x, y, s) { ctx.moveTo(x + s * .14, y + s * .86); ctx.lineTo(x + s * .86, y + s * .14); }

/** Colour of a cell's background. */
function ground(v, c, theme) {
  const { look, tokens } = v;
  if (v.heat) { const [r, g, b] = ramp(v.diverging ? theme.contrast : theme.amount, v.heat[c]); return `rgb(${r},${g},${b})`; }
  if (look.palette.length) return look.palette[tokens[c]];
  if (v.clash?.[c]) return theme.mistaken;
  if (v.wrong?.[c]) return theme.mistaken;
  if (v.given[c]) return theme.given;
  if (v.sure) return mix(theme.paper, theme.unsure, .8 * (1 - v.sure[c]));
  return v.before && v.before[c] !== tokens[c] ? theme.changed : theme.paper;
}

const small = typeof document === 'undefined' ? null : document.createElement('canvas');

/** Backgrounds: a pixel for each cell, then scaled. */
function cellsOf(ctx, v, s, theme) {
  const [rows, cols] = v.look.shape, known = new Map();
  small.width = cols; small.height = rows;
  const pen = small.getContext('2d'), image = pen.createImageData(cols, rows);
  for (let c = 0; c < rows * cols; c++) {
    const colour = ground(v, c, theme);
    if (!known.has(colour)) known.set(colour, bytesOf(colour));
    image.data.set(known.get(colour), 4 * c);
  }
  pen.putImageData(image, 0, 0);
  ctx.imageSmoothingEnabled = false;
  ctx.drawImage(small, 0, 0, cols * s, rows * s);
}

const bytesOf = colour => colour[0] === '#' ? [...[1, 3, 5].map(i => parseInt(colour.slice(i, i + 2), 16)), 255] : [...colour.match(/\d+/g).map(Number), 255];

function symbolsOf(ctx, v, s, theme) {
  const [rows, cols] = v.look.shape, painted = v.look.palette.length > 0;
  ctx.textAlign = 'center'; ctx.textBaseline = 'middle';
  const font = bold => `${bold ? '700 ' : '400 '}${Math.round(s * .62)}px ${FONT}`, middle = s * .54;
  for (let c = 0; c < rows * cols; c++) {
    const symbol = v.look.symbols[v.tokens[c]];
    if (!symbol || symbol === ' ' || (painted && v.heat)) continue;
    ctx.font = font(v.given[c] || painted);
    const dark = v.heat && (v.diverging ? Math.abs(v.heat[c] - .5) > .3 : v.heat[c] > .5);
    ctx.fillStyle = dark ? theme.paper : painted ? LIGHT.ink : v.given[c] ? theme.ink : v.wrong?.[c] ? theme.wrong : theme.answer;
    ctx.fillText(symbol, (c % cols + .5) * s, Math.floor(c / cols) * s + middle);
  }
}

/** Changed, wrong and unsure cells; all of a kind in one path. */
function marksOf(ctx, v, s, theme) {
  const [rows, cols] = v.look.shape, painted = v.look.palette.length > 0, cells = Array.from({ length: rows * cols }, (_, c) => c);
  const at = (list, shape) => { ctx.beginPath(); for (const c of list) shape(ctx, c % cols * s, Math.floor(c / cols) * s, s); };
  const changed = v.before ? cells.filter(c => v.before[c] !== v.tokens[c]) : [], wrong = v.wrong ? cells.filter(c => v.wrong[c]) : [];
  if (painted && v.sure && !v.heat) for (let level = 0; level < 8; level++) {
    at(cells.filter(c => v.sure[c] < .9 && Math.min(7, Math.floor((1 - v.sure[c]) * 8)) === level), (ctx, x, y, s) => ctx.rect(x + s * .35, y + s * .35, s * .3, s * .3));
    ctx.fillStyle = LIGHT.unsure; ctx.globalAlpha = .3 + level * .1; ctx.fill();
  }
  ctx.globalAlpha = 1;
  at(changed, painted ? diamond : triangle);
  ctx.fillStyle = painted ? '#ffffff' : theme.answer; ctx.fill();
  if (painted) { ctx.strokeStyle = LIGHT.ink; ctx.lineWidth = Math.max(.6, s * .05); ctx.stroke(); }
  at(wrong, strike);
  if (painted) { ctx.strokeStyle = '#ffffff'; ctx.lineWidth = Math.max(2, s * .16); ctx.stroke(); }
  ctx.strokeStyle = painted ? LIGHT.wrong : theme.wrong; ctx.lineWidth = Math.min(3, Math.max(1, s * (painted ? .09 : .05))); ctx.stroke();
}

function linesOf(ctx, v, s, theme) {
  const { shape: [rows, cols], box, palette } = v.look;
  const line = (x1, y1, x2, y2) => { ctx.moveTo(x1, y1); ctx.lineTo(x2, y2); };
  const rules = (high, wide) => { ctx.beginPath(); for (let r = high; r < rows; r += high) line(0, r * s, cols * s, r * s); for (let q = wide; q < cols; q += wide) line(q * s, 0, q * s, rows * s); ctx.stroke(); };
  if (!palette.length || s >= 10) { ctx.strokeStyle = palette.length ? 'rgba(127,127,127,.28)' : theme.line; ctx.lineWidth = palette.length ? .5 : 1; rules(1, 1); }
  if (box) { ctx.strokeStyle = theme.ink; ctx.lineWidth = 2; rules(...box); }
  ctx.strokeStyle = palette.length ? theme.soft : theme.ink; ctx.lineWidth = palette.length ? 1 : 2;
  ctx.strokeRect(0, 0, cols * s, rows * s);
}

/** Draw a board: v has look, tokens, given, before, wrong, sure, heat, diverging, clash, cell. */
export function drawBoard(canvas, width, v, theme) {
  const [rows, cols] = v.look.shape, s = Math.max(4, Math.floor(Math.min((width - 4) / cols, (width - 4) * 1.15 / rows, 72)));
  const ctx = fit(canvas, cols * s + 4, rows * s + 4);
  if (canvas.style.width !== cols * s + 4 + 'px') canvas.style.width = cols * s + 4 + 'px';
  if (canvas.style.height !== rows * s + 4 + 'px') canvas.style.height = rows * s + 4 + 'px';
  ctx.translate(2, 2);
  cellsOf(ctx, v, s, theme);
  linesOf(ctx, v, s, theme);
  symbolsOf(ctx, v, s, theme);
  marksOf(ctx, v, s, theme);
  if (v.cell >= 0) { ctx.strokeStyle = theme.pick; ctx.lineWidth = Math.max(2, s * .08); ctx.strokeRect(v.cell % cols * s, Math.floor(v.cell / cols) * s, s, s); }
  return s;
}

/** The places of a plot's axes. */
function frame(width, height, [x0, x1], [y0, y1], log) {
  const box = { left: 42, right: width - 10, top: 8, bottom: height - 20 }, f = log ? Math.log10 : v => v;
  const [a, b] = [f(y0), f(y1)];
  return { ...box, x: v => box.left + (v - x0) / (x1 - x0 || 1) * (box.right - box.left), y: v => box.bottom - (f(v) - a) / (b - a || 1) * (box.bottom - box.top),
    back: px => x0 + (px - box.left) / (box.right - box.left) * (x1 - x0) };
}

function axes(ctx, f, xs, ys, theme) {
  ctx.font = `10px ${FONT}`; ctx.fillStyle = theme.soft; ctx.strokeStyle = theme.faint; ctx.lineWidth = 1;
  ctx.textAlign = 'right'; ctx.textBaseline = 'middle';
  for (const v of ys) { const y = Math.round(f.y(v)) + .5; ctx.beginPath(); ctx.moveTo(f.left, y); ctx.lineTo(f.right, y); ctx.stroke(); ctx.fillText(short(v), f.left - 5, y); }
  ctx.textAlign = 'center'; ctx.textBaseline = 'top';
  for (const v of xs) ctx.fillText(short(v), f.x(v), f.bottom + 5);
}

function curve(ctx, f, xs, ys, colour, { width = 1.5, alpha = 1, dash = [] } = {}) {
  ctx.save(); ctx.beginPath(); ctx.rect(f.left - 3, f.top - 3, f.right - f.left + 6, f.bottom - f.top + 6); ctx.clip();
  ctx.strokeStyle = colour; ctx.lineWidth = width; ctx.globalAlpha = alpha; ctx.setLineDash(dash); ctx.lineJoin = 'round';
  ctx.beginPath();
  for (let i = 0, pen = false; i < xs.length; i++) { if (!Number.isFinite(ys[i])) { pen = false; continue; } const x = f.x(xs[i]), y = f.y(ys[i]); pen ? ctx.lineTo(x, y) : ctx.moveTo(x, y); pen = true; }
  ctx.stroke(); ctx.restore();
}

function note(ctx, theme, text, x, y, colour) { // readable over curves
  ctx.font = `600 10px ${FONT}`; ctx.textAlign = 'left'; ctx.textBaseline = 'bottom';
  ctx.lineWidth = 4; ctx.lineJoin = 'round'; ctx.strokeStyle = theme.card; ctx.strokeText(text, x, y);
  ctx.fillStyle = colour; ctx.fillText(text, x, y);
}
function dot(ctx, x, y, r, fill, rim) {
  ctx.beginPath(); ctx.arc(x, y, r, 0, 2 * Math.PI); ctx.fillStyle = fill; ctx.fill();
  if (rim) { ctx.strokeStyle = rim; ctx.lineWidth = 1.5; ctx.stroke(); }
}

const range = (lists, ...also) => { let low = Infinity, high = -Infinity; for (const list of [...lists, also]) for (const v of list || []) if (Number.isFinite(v)) { if (v < low) low = v; if (v > high) high = v; } return low <= high ? [low, high] : [0, 1]; };
const padded = ([a, b], share = .08) => [a - share * (b - a || 1), b + share * (b - a || 1)];

/** A panel of curves over ACT steps; curves are {x, y, colour, ...}. Returns its frame. */
function plotCurves(ctx, width, height, theme, { curves, xs, ys, log, xTicks, yTicks, threshold }) {
  const f = frame(width, height, xs, ys, log);
  const marks = yTicks || (log ? Array.from({ length: 30 }, (_, i) => 10 ** (i - 15)).filter(v => v >= ys[0] && v <= ys[1]).filter((_, i, all) => i % Math.ceil(all.length / 4) === 0) : ticks(...ys, height > 150 ? 5 : 3));
  axes(ctx, f, xTicks || whole(...xs, width > 300 ? 8 : 5), marks, theme);
  if (threshold !== undefined) { ctx.strokeStyle = theme.ink; ctx.lineWidth = 1; ctx.setLineDash([4, 3]); ctx.beginPath(); ctx.moveTo(f.left, f.y(threshold)); ctx.lineTo(f.right, f.y(threshold)); ctx.stroke(); ctx.setLineDash([]); }
  for (const c of curves) curve(ctx, f, c.x, c.y, c.colour, c);
  return f;
}

function cursor(ctx, f, x, theme) { ctx.strokeStyle = theme.pick; ctx.lineWidth = 1.25; ctx.beginPath(); ctx.moveTo(f.x(x), f.top - 4); ctx.lineTo(f.x(x), f.bottom); ctx.stroke(); }

/** Pixels of a heat map (rows, columns) from a function of (row, column) -> share; as a canvas of that size. */
function heatCanvas(rows, columns, scale, share) {
  const canvas = document.createElement('canvas'); canvas.width = columns; canvas.height = rows;
  const ctx = canvas.getContext('2d'), image = ctx.createImageData(columns, rows), table = Array.from({ length: 256 }, (_, i) => ramp(scale, i / 255));
  for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) { const [x, y, z] = table[Math.max(0, Math.min(255, Math.round(share(r, c) * 255)))], i = 4 * (r * columns + c); image.data[i] = x; image.data[i + 1] = y; image.data[i + 2] = z; image.data[i + 3] = 255; }
  ctx.putImageData(image, 0, 0);
  return canvas;
}

// ------------------------------------------------------------------ small parts of the page

function h(tag, props = {}, ...children) {
  const el = document.createElement(tag);
  for (const [k, v] of Object.entries(props)) {
    if (k.startsWith('on')) el.addEventListener(k.slice(2), v);
    else if (k === 'class') el.className = v;
    else if (k in el && typeof v !== 'string') el[k] = v;
    else el.setAttribute(k, v);
  }
  el.append(...children.filter(c => c !== null && c !== undefined));
  return el;
}

const ICONS = { first: 'M3 3h2v10H3zM13 3v10L6 8z', back: 'M12 3v10L4 8z', play: 'M4 2.5v11l9.5-5.5z', pause: 'M4 3h3v10H4zM9 3h3v10H9z', next: 'M4 3v10l8-5z', last: 'M11 3h2v10h-2zM3 3v10l7-5z',
  theme: 'M8 1.5a6.5 6.5 0 1 0 0 13zM8 1.5a6.5 6.5 0 0 1 0 13', close: 'M4 4l8 8M12 4l-8 8' };

function icon(name) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg'), path = document.createElementNS('http://www.w3.org/2000/svg', 'path');
  svg.setAttribute('viewBox', '0 0 16 16'); svg.setAttribute('width', '15'); svg.setAttribute('height', '15'); svg.setAttribute('aria-hidden', 'true');
  path.setAttribute('d', ICONS[name]); path.setAttribute('fill', name === 'close' ? 'none' : 'currentColor');
  if (name === 'close' || name === 'theme') { path.setAttribute('stroke', 'currentColor'); path.setAttribute('stroke-width', '1.4'); if (name === 'theme') path.setAttribute('d', 'M8 2a6 6 0 1 0 0 12z'); }
  svg.append(path);
  if (name === 'theme') { const ring = document.createElementNS('http://www.w3.org/2000/svg', 'circle'); for (const [k, v] of Object.entries({ cx: 8, cy: 8, r: 6, fill: 'none', stroke: 'currentColor', 'stroke-width': 1.4 })) ring.setAttribute(k, v); svg.append(ring); }
  return svg;
}

const iconButton = (name, title, onclick) => h('button', { class: 'trm-icon', title, 'aria-label': title, type: 'button', onclick }, icon(name));
const button = (text, title, onclick, kind = '') => h('button', { class: kind, title, type: 'button', onclick }, text);
const options = (select, entries, value) => { select.replaceChildren(...entries.map(([v, text]) => h('option', { value: String(v) }, text))); if (value !== undefined) select.value = String(value); return select; };
const labelled = (text, field) => h('label', {}, h('span', {}, text), field);

function save(name, blob) {
  const link = h('a', { href: URL.createObjectURL(blob), download: name });
  document.body.append(link); link.click(); link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

/** Keys pressed in a field are the field's: the notebook around would take some of them. */
const ownKeys = root => root.addEventListener('keydown', e => { if (e.target.matches('input, select, textarea')) e.stopPropagation(); });

/** Lay a widget out when it is seen again: pages hide their parts while they change themselves. */
function later(widget) {
  widget.seenWidth = 0; widget.stale = (widget.stale || 0) + 1;
  if (widget.stale < 20) setTimeout(() => widget.stale && widget.relayout(), 100 * widget.stale);
}

/** A titled canvas: `base` is drawn when data, size or colours change, `over` at every frame; `fits` is how much of a height is needed at a width. */
class Panel {
  constructor(title, height, { base, over, press, fits, tools = [], wide = false }) {
    Object.assign(this, { height, base, over, press, fits, still: document.createElement('canvas'), canvas: h('canvas', {}) });
    this.title = h('span', { class: 'trm-title' }, title); this.names = h('span', { class: 'trm-key' });
    this.el = h('section', { class: 'trm-panel' + (wide ? ' trm-wide' : '') }, h('header', {}, this.title, this.names, ...tools), this.canvas);
    let down = false;
    const act = e => { const box = this.canvas.getBoundingClientRect(); this.press?.(e.clientX - box.left, e.clientY - box.top, this.state, e.type === 'pointerdown'); };
    this.canvas.addEventListener('pointerdown', e => { down = true; this.canvas.setPointerCapture?.(e.pointerId); act(e); });
    this.canvas.addEventListener('pointermove', e => { if (down) act(e); });
    for (const name of ['pointerup', 'pointercancel']) this.canvas.addEventListener(name, () => { down = false; });
  }
  /** Words in the colours of curves. */
  key(entries) { this.names.replaceChildren(...entries.filter(e => e[0]).map(([text, colour]) => { const el = h('span', {}, text); el.style.color = colour; return el; })); }
  rebuild(theme) {
    this.width = Math.max(120, this.el.clientWidth - 2);
    if (this.fits) this.height = this.fits(this.width, this.height);
    this.canvas.style.width = this.width + 'px'; this.canvas.style.height = this.height + 'px';
    this.state = this.base(fit(this.still, this.width, this.height), this.width, this.height, theme);
  }
  frame(theme) {
    if (!this.width) return;
    const ctx = fit(this.canvas, this.width, this.height);
    ctx.save(); ctx.setTransform(1, 0, 0, 1, 0, 0); ctx.drawImage(this.still, 0, 0); ctx.restore();
    if (this.state) this.over(ctx, this.state, theme, this.width, this.height);
  }
}

/** Theme of a widget: follows the page until it is turned by hand. */
class Theme {
  constructor(root, changed) {
    this.root = root; this.changed = changed; this.forced = null;
    this.media = matchMedia('(prefers-color-scheme: dark)');
    this.look = () => this.apply();
    this.media.addEventListener?.('change', this.look);
    this.watch = new MutationObserver(this.look);
    this.watch.observe(document.body, { attributes: true });
    this.apply();
  }
  apply() {
    const dark = this.forced ?? isDark(document.body, this.media.matches);
    if (dark === this.dark) return;
    this.dark = dark; this.colours = dark ? DARK : LIGHT; this.root.dataset.theme = dark ? 'dark' : 'light';
    if (this.root === document.querySelector('body > main > .trm')) document.body.dataset.theme = this.root.dataset.theme;
    this.changed();
  }
  turn() { this.forced = !this.dark; this.apply(); }
  close() { this.media.removeEventListener?.('change', this.look); this.watch.disconnect(); }
}

// ------------------------------------------------------------------ the explorer

const SIDES = ['a', 'b'];
const SHADES = [['sure', 'confidence'], ['change', 'changes'], ['entropy', 'entropy'], ['move', 'movement'], ['pc0', 'component 1'], ['pc1', 'component 2'], ['pc2', 'component 3'], ['reads', 'what the cell reads'], ['read', 'what reads the cell'], ['patch', 'what feels it reset']];
const GRAINS = [['step', 'ACT steps'], ['cycle', 'H cycles'], ['update', 'all updates']];
const MAPS = [['pc0', 'component 1'], ['pc1', 'component 2'], ['pc2', 'component 3'], ['move', 'movement'], ['entropy', 'entropy']];
const HEATS = [['inner_entropy', 'entropy'], ['inner_change', 'movement'], ['pc0', 'component 1'], ['pc1', 'component 2'], ['pc2', 'component 3']];
const FIELDS = ['steps', 'H_cycles', 'L_cycles', 'noise', 'seed', 'identifier'];

export class Explorer {
  constructor(model, root) {
    this.model = model; this.root = root; this.live = model.get('live');
    this.sides = { a: null, b: null }; this.frames = []; this.u = 0; this.cell = -1; this.playing = false; this.draft = null; this.pen = null;
    this.asked = new Map(); this.influences = new Map(); this.serial = 0; this.loads = { a: 0, b: 0 }; this.loaded = {}; this.hidden = false; this.shown = -1;
    this.build();
    this.theme = new Theme(root, () => this.relayout());
    this.listen();
    this.takeBoard();
    for (const side of SIDES) this.takePack(side);
    this.takeStatus();
  }

  // ---- page

  build() {
    const grab = (name, value) => { this[name] = value; return value; };
    const pick = (name, entries, onchange, title) => grab(name, options(h('select', { title, onchange }), entries));
    this.root.classList.add('trm'); this.root.tabIndex = 0; this.root.dataset.lmSuppressShortcuts = 'true'; this.root.explorer = this; ownKeys(this.root);
    const menu = grab('menu', h('div', { class: 'trm-menu', hidden: true }, ...[['png', 'Picture (PNG)'], ['gif', 'Movie (GIF)'], ['mp4', 'Movie (MP4)'], ['npz', 'Trace (npz)'], ['html', 'Page that plays (HTML)']].filter(([k]) => this.live || k === 'png').map(([k, text]) => h('button', { type: 'button', 'data-export': k, onclick: () => { menu.hidden = true; this.export(k); } }, text))));
    const head = h('div', { class: 'trm-bar' },
      pick('models', [], () => this.chooseModel(), 'model'), 
      h('span', { class: 'trm-group' }, iconButton('back', 'puzzle before', () => this.choose(-1)), pick('puzzles', [], () => this.choose(0), 'puzzle'), iconButton('next', 'next puzzle', () => this.choose(1))),
      ...(this.live ? [grab('editButton', button('Edit', 'change cells of the puzzle', () => this.edit(this.draft === null), 'trm-toggle')), grab('pasteButton', button('Paste', 'type or paste a puzzle, or read one from a file', () => this.toggle('paste'), 'trm-toggle')),
        grab('solveButton', button('Solve', 'solve the puzzle', () => this.press(), 'trm-main'))] : []),
      h('span', { class: 'trm-space' }),
      ...(this.live ? [grab('settingsButton', button('Settings', 'steps, cycles, noise, seed', () => this.toggle('settings'), 'trm-toggle')), grab('compareButton', button('Compare', 'two checkpoints or two settings side by side', () => this.compare(!this.comparing), 'trm-toggle'))] : []),
      h('span', { class: 'trm-hold' }, button('Export', 'save what is seen', () => { menu.hidden = !menu.hidden; menu.classList.remove('trm-left'); menu.classList.toggle('trm-left', menu.getBoundingClientRect().left < this.root.getBoundingClientRect().left); }), menu),
      iconButton('theme', 'light or dark', () => this.theme.turn()));
    if (this.solveButton) this.solveButton.onpointerdown = () => { this.pressed = this.busy; };
    this.text = h('textarea', { rows: 4, placeholder: '', spellcheck: false, 'aria-label': 'puzzle as text' });
    const file = h('input', { type: 'file', accept: '.txt,.json,.csv', 'aria-label': 'file with a puzzle', onchange: async e => { const f = e.target.files[0]; if (f) { this.text.value = await f.text(); this.read(f.name); e.target.value = ''; } } });
    this.paste = h('div', { class: 'trm-drawer', hidden: true }, this.text, h('div', { class: 'trm-column' }, button('Load', 'read the text', () => this.read(''), 'trm-main'), file));
    this.settings = h('div', { class: 'trm-drawer', hidden: true });
    this.message = h('span', { class: 'trm-says', role: 'status' });
    this.anyway = button('Solve anyway', 'solve although givens contradict each other', () => this.solve(true));
    this.note = h('div', { class: 'trm-note', hidden: true }, this.message, this.anyway, iconButton('close', 'close', () => { this.note.hidden = true; }));
    this.progress = h('div', { class: 'trm-progress' }, h('div', {}));
    this.boards = h('div', { class: 'trm-boards' });
    this.board = {};
    for (const side of SIDES) this.boards.append(this.makeBoard(side));
    this.swatches = h('div', { class: 'trm-swatches', hidden: true });
    this.legend = h('div', { class: 'trm-legend' });
    const left = h('div', { class: 'trm-left' }, this.boards, this.swatches, h('div', { class: 'trm-bar trm-shade' }, labelled('shade', pick('shade', SHADES.filter(([k]) => this.live || k !== 'patch'), () => { this.influence(); this.draw(); }, 'what the colour of a cell shows')), labelled('read from', pick('lens', [], () => this.relayout(), 'the latent that is read through the output head'))), this.legend);
    this.slider = h('input', { type: 'range', min: '0', max: '0', value: '0', class: 'trm-slider', 'aria-label': 'time', oninput: () => { this.pause(); this.seek(this.frames[+this.slider.value]); } });
    this.where = h('span', { class: 'trm-where' });
    this.playButton = iconButton('play', 'play or pause (space)', () => this.playing ? this.pause() : this.play());
    this.playButton.classList.add('trm-play');
    const transport = h('div', { class: 'trm-bar trm-transport' }, iconButton('first', 'to the beginning (Home)', () => this.go(-Infinity)), iconButton('back', 'one back (left)', () => this.go(-1)), this.playButton, iconButton('next', 'one on (right)', () => this.go(1)), iconButton('last', 'to the end (End)', () => this.go(Infinity)),
      this.slider, this.where, pick('grain', GRAINS, () => this.regrain(), 'what one step of the slider is'), pick('speed', [[2, '2 a second'], [4, '4 a second'], [8, '8 a second'], [16, '16 a second'], [30, '30 a second'], [60, '60 a second']], () => {}, 'frames a second'));
    this.grain.value = 'cycle'; this.speed.value = '8';
    const panels = this.makePanels();
    left.append(this.panels.cell.el);
    this.root.replaceChildren(head, this.paste, this.settings, this.progress, this.note, transport, h('div', { class: 'trm-main-area' }, left, panels));
  }

  makeBoard(side) {
    const canvas = h('canvas', { class: 'trm-board', 'data-side': side }), title = h('div', { class: 'trm-board-title' }), caption = h('div', { class: 'trm-caption' });
    const at = e => { const box = canvas.getBoundingClientRect(), [rows, cols] = this.look().shape, s = (box.width - 4) / cols, c = Math.floor((e.clientX - box.left - 2) / s), r = Math.floor((e.clientY - box.top - 2) / s); return r >= 0 && r < rows && c >= 0 && c < cols ? r * cols + c : -1; };
    canvas.addEventListener('pointerdown', e => { this.root.focus({ preventScroll: true }); this.pickCell(at(e), true); this.painting = this.draft && this.pen !== null; });
    canvas.addEventListener('pointermove', e => { if (this.painting && e.buttons) this.pickCell(at(e), false); });
    this.board[side] = { canvas, title, caption, el: h('figure', { class: 'trm-side', 'data-side': side, hidden: side === 'b' }, title, canvas, caption) };
    return this.board[side].el;
  }

  makePanels() {
    const time = (x, y, s) => { if (s?.f) { this.pause(); this.seekTime(s.f.back(x)); } }, over = (ctx, s, theme) => cursor(ctx, s.f, this.time(), theme);
    this.heat = options(h('select', { title: 'what the colours show', onchange: () => this.relayout() }), HEATS);
    this.mapped = options(h('select', { title: 'what the colours of the latents show', onchange: () => this.draw() }), MAPS);
    this.panels = {
      q: new Panel('q_halt', 132, { base: (...x) => this.baseHalting(...x), over: (ctx, s, theme) => { over(ctx, s, theme); this.overHalting(ctx, s, theme); }, press: time }),
      cells: new Panel('Cells', 132, { base: (...x) => this.baseCells(...x), over, press: time }),
      maps: new Panel('Latents, cell by cell', 190, { wide: true, tools: [this.mapped], fits: (...x) => this.mapsHeight(...x), base: (...x) => this.baseMaps(...x), over: (...x) => this.overMaps(...x), press: (x, y, s, first) => this.pressMaps(x, y, s, first) }),
      move: new Panel('Movement (rms)', 150, { base: (...x) => this.baseMove(...x), over, press: time }),
      path: new Panel('Path', 150, { base: (...x) => this.basePath(...x), over: (...x) => this.overPath(...x) }),
      heat: new Panel('Every cell, every update', 190, { wide: true, tools: [this.heat], base: (...x) => this.baseHeat(...x), over: (...x) => this.overHeat(...x), press: (x, y, s, first) => this.pressHeat(x, y, s, first) }),
      cell: new Panel('A cell', 120, { wide: true, base: (...x) => this.baseCell(...x), over: (ctx, s, theme) => { if (s.f) over(ctx, s, theme); }, press: time }),
    };
    return h('div', { class: 'trm-panels' }, ...Object.values(this.panels).map(p => p.el));
  }

  listen() {
    const m = this.model, on = (name, f) => { m.on(name, f); (this.offs ||= []).push(() => m.off(name, f)); };
    for (const side of SIDES) on('change:pack_' + side, () => this.takePack(side));
    on('change:board', () => this.takeBoard());
    on('change:status', () => this.takeStatus());
    on('msg:custom', (message, buffers) => this.answered(message, buffers));
    this.root.addEventListener('keydown', e => this.keyed(e));
    document.addEventListener('pointerdown', this.outside = e => { if (!this.menu.hidden && !this.menu.parentElement.contains(e.target)) this.menu.hidden = true; });
    document.addEventListener('pointerup', this.lifted = () => { this.painting = false; });
    this.resized = new ResizeObserver(() => { const w = this.root.clientWidth; if (w && w !== this.seenWidth) { this.seenWidth = w; this.relayout(); } });
    this.resized.observe(this.root);
  }

  close() {
    this.pause(); this.theme.close(); this.resized.disconnect(); this.offs.forEach(f => f());
    document.removeEventListener('pointerdown', this.outside); document.removeEventListener('pointerup', this.lifted);
  }

  toggle(name) {
    for (const other of ['paste', 'settings']) this[other].hidden = other === name ? !this[other].hidden : true;
    for (const other of ['paste', 'settings']) this[other + 'Button']?.classList.toggle('trm-on', !this[other].hidden);
    if (!this.paste.hidden) this.text.focus();
  }

  // ---- what the kernel says

  takePack(side) { this.loaded[side] = this.load(side).catch(e => console.error('explorer: a pack cannot be read', e)); }

  async load(side) {
    const turn = ++this.loads[side], data = this.model.get('pack_' + side);
    const trace = data && data.byteLength ? readTrace(unpack(await inflate(data))) : null;
    if (turn !== this.loads[side]) return;
    const first = !this.sides.a, follow = this.busy || !trace, wasEnd = this.sides.a && this.u >= this.sides.a.T - 1;
    this.sides[side] = trace;
    this.influences.clear();
    this.board.b.el.hidden = !this.sides.b;
    if (side === 'a' && trace) {
      options(this.lens, [[trace.readout, trace.readout], ['', 'the latent just updated'], ...trace.latents.filter(n => n !== trace.readout).map(n => [n, n])], [...this.lens.options].some(o => o.value === this.lens.value) && trace.latents.includes(this.lens.value) ? this.lens.value : trace.readout);
      this.frames = framesOf(trace, this.grain.value);
      if (this.cell >= trace.cells || (this.shape && this.shape !== String(trace.look.shape))) this.cell = -1;
      this.shape = String(trace.look.shape);
      this.u = this.live && (first || follow || wasEnd) ? trace.T - 1 : this.live ? Math.min(this.u, trace.T - 1) : this.frames[0];
    }
    if (!this.sides.a) { this.frames = []; this.u = 0; }
    this.relayout();
  }

  takeBoard() {
    const b = this.info = this.model.get('board') || {};
    options(this.models, (b.models || []).map(n => [n, n]), b.model); this.models.hidden = !this.live || (b.models || []).length < 2;
    options(this.puzzles, (b.puzzles || []).map((p, i) => [i, p]), b.entry ?? 0); this.puzzles.parentElement.hidden = !(b.puzzles || []).length;
    this.text.placeholder = b.hint || '';
    this.grain.disabled = false;
    if (this.live) this.makeSettings();
    this.makeSwatches();
    if (this.draft && b.serial !== this.drafted) this.edit(false);
    this.relayout();
  }

  async takeStatus() {
    await Promise.all([this.loaded.a, this.loaded.b]); // what is said after a pack holds once that pack is seen: `not busy` comes right behind the last one
    const s = this.model.get('status') || {};
    this.busy = !!s.busy;
    this.progress.firstChild.style.width = (s.busy ? 100 * (s.done || 0) : 0) + '%';
    this.progress.classList.toggle('trm-busy', this.busy);
    if (this.solveButton) { this.solveButton.textContent = this.busy ? 'Cancel' : 'Solve'; this.solveButton.classList.toggle('trm-cancel', this.busy); }
    if (!this.busy && this.info?.model) this.models.value = this.info.model;   // a model that was not read is not the one that is shown
    this.note.hidden = !s.text || s.level === 'quiet';
    this.note.className = 'trm-note trm-' + (s.level || 'info');
    this.message.textContent = s.text || '';
    this.anyway.hidden = !s.offer;
    this.clash = s.clashes?.length ? s.clashes : null;
    this.draw();
  }

  answered(message, buffers) {
    const waiting = this.asked.get(message.id);
    if (waiting) { this.asked.delete(message.id); waiting(message, buffers); }
  }

  ask(type, content = {}) {
    const id = `${type}-${++this.serial}-${Math.random().toString(36).slice(2, 8)}`;
    return new Promise(resolve => { this.asked.set(id, (message, buffers) => resolve({ message, buffers })); this.model.send({ type, id, ...content }); });
  }

  // ---- what a reader does

  values(side) {
    const found = {};
    for (const input of this.settings.querySelectorAll(`[data-side="${side}"] input`)) if (input.value !== '') found[input.name] = +input.value;
    return found;
  }

  get comparing() { return !!this.settings.querySelector('[data-side="b"]'); }

  makeSettings() {
    const b = this.info, one = side => {
      const now = b.settings?.[side] || {}, model = options(h('select', { 'data-model': side, onchange: () => this.solve() }), (b.models || []).map(n => [n, n]), side === 'a' ? b.model : b.other || b.model);
      const fields = (b.fields || []).map(f => labelled(f.label, h('input', { type: 'number', name: f.name, min: String(f.min), max: String(f.max), step: String(f.step), value: now[f.name] === undefined || now[f.name] === null ? '' : String(now[f.name]), placeholder: String(f.value), title: f.help, onchange: () => this.solve() })));
      return h('fieldset', { 'data-side': side }, h('legend', {}, side === 'a' ? (b.comparing ? 'left' : 'this model') : 'right'), side === 'b' ? labelled('model', model) : null, ...fields);
    };
    const old = document.activeElement, kept = this.settings.contains(old) && old.name ? `[data-side="${old.closest('fieldset')?.dataset.side}"] [name="${old.name}"]` : '';
    this.settings.replaceChildren(one('a'), ...(b.comparing ? [one('b')] : []), h('form', { class: 'trm-column', onsubmit: e => { e.preventDefault(); const name = e.target.elements[0].value.trim(); if (name) this.model.send({ type: 'model', name }); } }, h('label', {}, h('span', {}, 'another model'), h('input', { type: 'text', placeholder: 'run folder, checkpoint or name', spellcheck: false })), h('button', { type: 'submit' }, 'Load')));
    if (kept) this.settings.querySelector(kept)?.focus();
    this.compareButton.classList.toggle('trm-on', !!b.comparing);
  }

  solve(anyway = false, more = {}) {
    if (!this.live) return;
    const b = this.settings.querySelector('[data-side="b"]');
    this.model.send({ type: 'solve', a: { settings: this.values('a') }, b: b ? { model: b.querySelector('select').value, settings: this.values('b') } : null, tokens: this.draft ? [...this.draft] : null, anyway, ...more });
  }

  compare(on) {
    this.model.send({ type: 'compare', on });
    if (on && this.settings.hidden) this.toggle('settings');
  }

  chooseModel() { this.edit(false); this.model.send({ type: 'model', name: this.models.value }); }

  choose(by) {
    const n = this.puzzles.options.length, i = (+this.puzzles.value + by + n) % n;
    this.puzzles.value = String(i); this.edit(false);
    if (this.live) this.model.send({ type: 'entry', entry: i });
    else { this.model.choose(i); }
  }

  async read(name) { 
    const { message } = await this.ask('read', { text: this.text.value, name });
    if (message.ok) this.toggle('paste');
  }

  press() { // a field that is left by this very click may have begun a solve: what counts is what the button said when it was pressed
    const busy = this.pressed ?? this.busy; this.pressed = null;
    if (busy && this.busy) this.model.send({ type: 'cancel' }); else if (!this.busy) this.solve();
  }

  edit(on) {
    if (!this.live) return;
    this.pause();
    if (on) this.note.hidden = true;
    this.draft = on ? Uint8Array.from(this.info.tokens || this.sides.a?.arrays.inputs || []) : null;
    this.drafted = this.info.serial; this.pen = null;
    this.editButton?.classList.toggle('trm-on', on);
    this.root.classList.toggle('trm-editing', on);
    this.swatches.hidden = !on;
    if (on && this.cell < 0) this.cell = 0;
    this.relayout();
  }

  makeSwatches() {
    const look = this.info.look;
    if (!look) return;
    this.swatches.replaceChildren(...(this.info.writable || []).map(t => {
      const symbol = (look.symbols[t] || '').trim(), el = button(symbol || (t === look.blank ? '␣' : ''), t === look.blank ? 'empty (backspace)' : `write ${symbol || 'this colour'}`, () => this.write(t));
      if (look.palette.length) { el.style.background = look.palette[t]; el.style.color = '#1f2328'; }
      el.dataset.token = t;
      return el;
    }), h('span', { class: 'trm-soft' }, look.palette.length ? 'choose, then paint' : 'click a cell, then type; arrows move'));
  }

  write(token) {
    if (!this.draft) return;
    this.pen = token;
    for (const el of this.swatches.querySelectorAll('button')) el.classList.toggle('trm-on', +el.dataset.token === token);
    if (!this.look().palette.length && this.cell >= 0) { this.draft[this.cell] = token; this.pen = null; this.check(); }
    this.draw();
  }

  async check() {
    const { message } = await this.ask('check', { tokens: [...this.draft] });
    if (this.draft) { this.clash = message.clashes.length ? message.clashes : null; this.draw(); }
  }

  pickCell(cell, first) {
    if (cell < 0) return;
    if (this.draft && this.pen !== null) { if (this.draft[cell] !== this.pen) { this.draft[cell] = this.pen; this.cell = cell; this.check(); this.draw(); } return; }
    this.cell = first && this.cell === cell && !this.draft ? -1 : cell;
    this.influence();
    this.redraw('cell', 'path');
  }

  keyed(e) {
    if (e.key === 'Enter' && e.target.type === 'number') { e.preventDefault(); return this.solve(); }  // JupyterLab keeps Enter from fields
    if (e.target.matches?.('textarea, input:not([type=range]), select') || e.ctrlKey || e.metaKey || e.altKey) return;
    const [rows, cols] = this.look()?.shape || [1, 1], done = () => { e.preventDefault(); e.stopPropagation(); };
    const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -cols, ArrowDown: cols };
    if (this.draft) {
      if (e.key in moves) { const to = this.cell + moves[e.key]; if (to >= 0 && to < rows * cols) this.cell = to; this.draw(); return done(); }
      if (e.key === 'Escape') { this.edit(false); return done(); }
      if (e.key === 'Enter') { this.solve(); return done(); }
      const look = this.look(), blank = ['Backspace', 'Delete', '0', '.', ' '].includes(e.key) && look.blank !== null, t = blank ? look.blank : (this.info.writable || []).find(t => look.symbols[t] !== ' ' && look.symbols[t]?.toUpperCase() === e.key.toUpperCase());
      if (t !== undefined) { this.write(t); return done(); }
      return;
    }
    const step = e.shiftKey ? this.perStep() : 1, keys = { ArrowLeft: () => this.go(-step), ArrowRight: () => this.go(step), Home: () => this.go(-Infinity), End: () => this.go(Infinity), Escape: () => { this.cell = -1; this.redraw('cell', 'path'); } };
    if (e.key === ' ' && e.target.tagName !== 'BUTTON') { this.playing ? this.pause() : this.play(); return done(); }
    if (e.key in keys) { keys[e.key](); done(); }
  }

  // ---- time

  perStep() { return this.sides.a ? Math.max(1, Math.round(this.frames.length / this.sides.a.steps)) : 1; }
  time() { return this.sides.a ? (this.u + 1) / this.sides.a.U : 0; }
  seekTime(t) { if (this.sides.a) this.seek(this.frames[frameAt(this.frames, Math.max(0, Math.round(t * this.sides.a.U) - 1))]); }
  go(by) { this.pause(); const i = frameAt(this.frames, this.u); this.seek(this.frames[Math.max(0, Math.min(this.frames.length - 1, i + by))]); }
  seek(u) { if (u === undefined || !this.sides.a) return; this.u = u; this.slider.value = String(frameAt(this.frames, u)); this.draw(); }
  setStep(step) { this.pause(); this.seek(step * this.sides.a.U - 1); this.paint(); }
  regrain() { if (!this.sides.a) return; this.frames = framesOf(this.sides.a, this.grain.value); this.u = this.frames[frameAt(this.frames, this.u)]; this.relayout(); }

  play() {
    if (!this.sides.a) return;
    if (frameAt(this.frames, this.u) >= this.frames.length - 1) this.seek(this.frames[0]);
    this.playing = true; this.playButton.replaceChildren(icon('pause'));
    let then = performance.now();
    const tick = now => {
      if (!this.playing) return;
      const due = Math.floor((now - then) / 1000 * +this.speed.value);
      if (due > 0) {
        then += due * 1000 / +this.speed.value;
        const i = Math.min(this.frames.length - 1, frameAt(this.frames, this.u) + due);
        this.u = this.frames[i]; this.slider.value = String(i); this.paint();
        if (i >= this.frames.length - 1) return this.pause();
      }
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }

  pause() { if (this.playing) { this.playing = false; this.playButton.replaceChildren(icon('play')); this.influence(); } }

  // ---- drawing

  look() { return this.draft || !this.sides.a ? this.info?.look || this.sides.a?.look : this.sides.a.look; }

  relayout() {
    const w = this.root.clientWidth;
    if (!this.theme || !this.info) return;
    if (!w) return later(this);
    this.stale = 0;
    this.root.classList.toggle('trm-narrow', w < 700);
    this.root.classList.toggle('trm-big', w >= 1150);
    this.root.classList.toggle('trm-two', !!this.sides.b && !this.draft);
    for (const [name, low, high] of [['q', 128, 150], ['cells', 128, 150], ['move', 146, 170], ['path', 146, 170], ['maps', 178, 216], ['heat', 190, 250]]) this.panels[name].height = w >= 1150 ? high : low;
    this.slider.max = String(Math.max(0, this.frames.length - 1)); this.slider.value = String(frameAt(this.frames, this.u));
    this.boardsWidth = this.boards.clientWidth;
    for (const p of Object.values(this.panels)) p.rebuild(this.theme.colours);
    this.makeLegend();
    this.draw();
  }

  redraw(...names) { for (const n of names) this.panels[n].rebuild(this.theme.colours); this.draw(); }
  draw() { if (this.pending || !this.theme) return; this.pending = true; requestAnimationFrame(() => { this.pending = false; this.paint(); }); }

  paint() {
    this.drawSide('a');
    if (this.sides.b) this.drawSide('b');
    for (const p of Object.values(this.panels)) p.frame(this.theme.colours);
    const a = this.sides.a;
    this.where.textContent = a ? nameOf(a, this.u) : '';
    this.shown = this.u;
    this.noted?.();
  }

  /** What is looked at, as text: for the address of a page. */
  state() { return { p: this.puzzles.options.length ? this.puzzles.value : '', u: String(this.u), cell: this.cell < 0 ? '' : String(this.cell), shade: this.shade.value, lens: this.lens.value || 'last', grain: this.grain.value, heat: this.heat.value, theme: this.theme.forced === null ? '' : this.theme.forced ? 'dark' : 'light' }; }

  /** Look at what an address says; what it does not know stays. */
  async restore(s) {
    const may = (select, value) => { if (value !== undefined && [...select.options].some(o => o.value === value)) select.value = value; };
    if (s.p && s.p !== this.puzzles.value && +s.p < this.puzzles.options.length) { this.puzzles.value = s.p; this.model.choose(+s.p); await this.loaded.a; }
    may(this.shade, s.shade); may(this.lens, s.lens === 'last' ? '' : s.lens); may(this.grain, s.grain); may(this.heat, s.heat);
    if (s.theme) { this.theme.forced = s.theme === 'dark'; this.theme.apply(); }
    const a = this.sides.a;
    this.frames = framesOf(a, this.grain.value);
    this.cell = s.cell && +s.cell < a.cells ? +s.cell : -1;
    if (s.u) this.u = this.frames[frameAt(this.frames, Math.max(0, Math.min(a.T - 1, +s.u || 0)))];
    this.pause(); this.influence(); this.relayout();
  }

  view(side) {
    const trace = this.sides[side], look = this.look();
    const board = this.draft || (trace ? null : this.info.tokens ? Uint8Array.from(this.info.tokens) : null);
    const clash = this.clash && !(trace && !this.draft && side === 'b') ? this.marksFrom(this.clash, look) : null;
    if (board) return { look, tokens: board, given: Uint8Array.from(board, t => look.blank !== null && t !== look.blank), cell: this.cell, clash };
    const u = side === 'a' ? this.u : aligned(this.sides.a, trace, this.u), now = readAt(trace, u, this.lensOf(trace)), shade = this.shade.value;
    return { look, u, ...now, sure: shade === 'sure' || look.palette.length ? now.sure : null, given: givensOf(trace), wrong: wrongAt(trace, now.tokens), cell: this.cell, clash: now.source < 0 ? clash : null, ...this.heatOf(trace, side, now.source, shade) };
  }

  marksFrom(cells, look) { const found = new Uint8Array(look.shape[0] * look.shape[1]); for (const c of cells) found[c] = 1; return found; }
  lensOf(trace) { return trace.latents.includes(this.lens.value) || this.lens.value === '' ? this.lens.value : trace.readout; }

  heatOf(trace, side, source, shade) {
    const a = trace.arrays, L = trace.cells, bytes = x => Float32Array.from(x.subarray(source * L, (source + 1) * L), v => v / 255);
    if (['reads', 'read', 'patch'].includes(shade)) { const found = this.influences.get(this.influenceKey(side)); return found?.[shade] ? { heat: Float32Array.from(found[shade], v => v / 255) } : {}; }
    if (!trace.inner || source < 0) return {};
    if (shade === 'entropy') return { heat: bytes(a.inner_entropy) };
    if (shade === 'move') return { heat: Float32Array.from(bytes(a.inner_change), v => Math.max(0, (v - .55) / .45)) };
    if (shade.startsWith('pc') && a.cell_path) { const k = +shade[2], top = this.reach(trace, k); return { diverging: true, heat: Float32Array.from({ length: L }, (_, c) => .5 + .5 * a.cell_path[(source * L + c) * 3 + k] / top) }; }
    return {};
  }

  reach(trace, k) {
    if (trace.cache['reach' + k]) return trace.cache['reach' + k];
    let top = 1; const x = trace.arrays.cell_path;
    for (let i = k; i < x.length; i += 3) if (Math.abs(x[i]) > top) top = Math.abs(x[i]);
    return trace.cache['reach' + k] = top;
  }

  drawSide(side) {
    const look = this.look(), trace = this.sides[side], { canvas, title, caption, el } = this.board[side];
    if (!look || (side === 'b' && this.draft) || !(trace || this.draft || this.info.tokens)) return;
    const v = this.view(side), two = this.sides.b && !this.draft;
    drawBoard(canvas, Math.min(this.boardWidth(), 560), v, this.theme.colours);
    title.textContent = this.draft ? 'editing' : trace && two ? trace.label || '' : '';
    title.hidden = !title.textContent;
    caption.replaceChildren(...(this.draft ? ['Enter or Solve runs the model; Escape leaves'] : trace ? this.caption(trace, v) : ['']));
  }

  boardWidth() { const two = this.sides.b && !this.draft, w = this.boardsWidth || 300; return two ? (w - 14) / 2 : w; }

  caption(trace, v) {
    const s = Math.floor(v.u / trace.U), q = trace.inner && v.source >= 0 ? trace.arrays.inner_q_halt[v.source] : trace.arrays.q_halt[s], parts = [];
    parts.push(h('span', { class: q > 0 ? 'trm-stop' : 'trm-soft' }, `q_halt ${signed(q)}${q > 0 ? ' stops' : ''}`));
    const end = (v.u + 1) % trace.U === 0;
    if (v.wrong) { const n = v.wrong.reduce((a, b) => a + b, 0); parts.push(h('span', { class: n ? 'trm-bad' : 'trm-good' }, n ? `${n} wrong` : 'solved')); }
    else if (end && trace.arrays.conflicts) { const n = trace.arrays.conflicts[s]; parts.push(h('span', { class: n ? 'trm-bad' : 'trm-good' }, n ? `${n} ${n === 1 ? 'rule' : 'rules'} broken` : 'no rule broken')); }
    if (v.before) { const n = v.tokens.reduce((k, t, i) => k + (t !== v.before[i]), 0); parts.push(h('span', { class: 'trm-soft' }, `${n} changed`)); }
    if (v.source < 0) parts.push(h('span', { class: 'trm-soft' }, 'not written yet: the puzzle'));
    return parts;
  }

  makeLegend() {
    const look = this.look(), item = (cls, text) => h('span', {}, h('i', { class: cls }), text);
    if (!look) return;
    const known = this.sides.a?.arrays.solution;
    this.legend.replaceChildren(...(look.palette.length ? [item('k-diamond', 'changed'), known ? item('k-strike', 'wrong') : null, item('k-dot', 'unsure')] : [look.blank !== null ? item('k-given', 'given') : null, item('k-corner', 'changed'), known ? item('k-wrong', 'wrong') : null, item('k-unsure', 'unsure')]).filter(Boolean));
  }

  // ---- panels

  xs(trace, at) { return Array.from(at, u => (u + 1) / trace.U); }
  both() { return SIDES.map(s => [s, this.sides[s]]).filter(([, t]) => t); }
  span() { return [0, Math.max(...this.both().map(([, t]) => t.steps), 1)]; }
  of(trace, latent) { const want = trace.latents.indexOf(latent), found = []; for (let u = 0; u < trace.T; u++) if (trace.kind[u] === want) found.push(u); return found; }
  style(side) { return side === 'a' ? {} : { dash: [5, 3] }; }

  baseHalting(ctx, width, height, theme) {
    if (!this.sides.a) return null;
    const curves = [], points = [];
    for (const [side, t] of this.both()) {
      const colour = theme.cycle[side === 'a' ? 0 : 1], ends = Array.from({ length: t.steps }, (_, s) => (s + 1) * t.U - 1), at = t.inner ? this.of(t, t.readout) : [];
      if (t.inner) curves.push({ x: this.xs(t, at), y: at.map(u => t.arrays.inner_q_halt[u]), colour, width: 1, alpha: .5 });
      curves.push({ x: this.xs(t, ends), y: [...t.arrays.q_halt], colour, ...this.style(side) });
      points.push([t, colour, ends]);
    }
    const ys = padded(range(curves.map(c => c.y), -1, 1)), f = plotCurves(ctx, width, height, theme, { curves, xs: this.span(), ys, threshold: 0 });
    for (const [t, colour, ends] of points) for (let s = 0; s < t.steps; s++) dot(ctx, f.x((ends[s] + 1) / t.U), f.y(t.arrays.q_halt[s]), 2.6, t.arrays.halts[s] ? colour : theme.card, colour);
    note(ctx, theme, 'stops above', f.left + 4, f.y(0) - 3, theme.soft);
    this.panels.q.key(this.sides.b ? [['left', theme.cycle[0]], ['right', theme.cycle[1]]] : []);
    return { f };
  }

  overHalting(ctx, { f }, theme) {
    for (const [side, t] of this.both()) {
      const u = side === 'a' ? this.u : aligned(this.sides.a, t, this.u), source = t.inner ? sourceOf(t, u, t.readout) : u;
      const q = t.inner ? t.arrays.inner_q_halt[source] : t.arrays.q_halt[Math.floor(u / t.U)];
      if (source >= 0) dot(ctx, f.x((source + 1) / t.U), f.y(q), 4, theme.pick, theme.card);
    }
  }

  baseCells(ctx, width, height, theme) {
    if (!this.sides.a) return null;
    const curves = [], names = [];
    for (const [side, t] of this.both()) {
      const grain = t.inner ? framesOf(t, this.lens.value === t.readout ? 'cycle' : 'update') : framesOf(t, 'step'), found = counts(t, this.lensOf(t)), x = this.xs(t, grain), pick = list => grain.map(u => list[u]);
      if (found.wrong) curves.push({ x, y: pick(found.wrong), colour: theme.wrong, width: 2, ...this.style(side) });
      else if (t.arrays.conflicts) curves.push({ x: Array.from({ length: t.steps }, (_, s) => s + 1), y: [...t.arrays.conflicts], colour: theme.wrong, width: 2, ...this.style(side) });
      curves.push({ x, y: pick(found.changed), colour: theme.answer, width: 1.2, ...this.style(side) });
      if (side === 'a') names.push([found.wrong ? 'wrong' : t.arrays.conflicts ? 'rules broken' : '', theme.wrong], ['changed', theme.answer]);
    }
    const [, high] = range(curves.map(c => c.y), 0, 4), f = plotCurves(ctx, width, height, theme, { curves, xs: this.span(), ys: [-.04 * high, high * 1.12] , yTicks: ticks(0, high, 3) });
    this.panels.cells.key(names);
    return { f };
  }

  baseMove(ctx, width, height, theme) {
    if (!this.sides.a?.arrays.move) return null;
    const curves = [], names = [];
    for (const [side, t] of this.both()) t.latents.forEach((n, k) => {
      const at = this.of(t, n), colour = theme.cycle[k % theme.cycle.length];
      curves.push({ x: this.xs(t, at), y: at.map(u => Math.max(t.arrays.move[u], 1e-7)), colour, ...this.style(side) });
      if (side === 'a') names.push([n, colour]);
    });
    const [low, high] = range(curves.map(c => c.y)), f = plotCurves(ctx, width, height, theme, { curves, xs: this.span(), ys: [low / 1.4, high * 1.6], log: true });
    this.panels.move.key(names);
    return { f };
  }

  /** Places of a latent of a trace, of a cell or of the mean over cells: [{u, x, y}]. */
  track(trace, latent, cell) {
    const name = `track ${latent} ${cell}`;
    if (trace.cache[name]) return trace.cache[name];
    const a = trace.arrays, L = trace.cells, scale = trace.cell_scale || [1, 1, 1];
    return trace.cache[name] = this.of(trace, latent).map(u => cell < 0 ? { u, x: a.path[u * 3], y: a.path[u * 3 + 1] } : { u, x: a.cell_path[(u * L + cell) * 3] * scale[0], y: a.cell_path[(u * L + cell) * 3 + 1] * scale[1] });
  }

  basePath(ctx, width, height, theme) {
    const a = this.sides.a, name = this.panels?.path.title;
    if (!a?.arrays.path) return null;
    const cell = this.cell >= 0 && a.arrays.cell_path && this.cell < a.cells ? this.cell : -1;
    if (name) name.textContent = cell < 0 ? 'Path of the mean' : `Path, ${this.cellName(cell)}`;
    const shared = this.sides.b && this.sides.b.basis === a.basis, groups = this.sides.b && !shared ? [['a'], ['b']] : [SIDES.filter(s => this.sides[s])];
    const plots = groups.map((sides, i) => {
      const w = width / groups.length, tracks = sides.flatMap(s => this.sides[s].latents.map((n, k) => ({ side: s, k, points: this.track(this.sides[s], n, cell) })));
      const all = tracks.flatMap(t => t.points), xs = padded(range([all.map(p => p.x)])), ys = padded(range([all.map(p => p.y)])), f = frame(w, height, xs, ys);
      f.left = i * w + 14; f.right = (i + 1) * w - 10;
      f.x = v => f.left + (v - xs[0]) / (xs[1] - xs[0]) * (f.right - f.left);
      ctx.strokeStyle = theme.faint; ctx.strokeRect(f.left - 4.5, f.top - 4.5, f.right - f.left + 9, f.bottom - f.top + 9);
      for (const t of tracks) curve(ctx, f, t.points.map(p => p.x), t.points.map(p => p.y), theme.cycle[(t.k + (t.side === 'b' && shared ? 2 : 0)) % 7], { width: 1, alpha: .3 });
      ctx.font = `10px ${FONT}`; ctx.fillStyle = theme.soft; ctx.textAlign = 'center'; ctx.textBaseline = 'top';
      const part = this.sides[sides[0]].explained?.[cell < 0 ? 0 : 1];
      const share = part && part.map(p => `(${Math.round(100 * p)}%)`);
      ctx.fillText(w < 180 ? (part ? `1 ${share[0]}, up: 2 ${share[1]}` : '1, up: 2') : part ? `component 1 ${share[0]}, up: 2 ${share[1]}` : 'components 1 and 2', (f.left + f.right) / 2, f.bottom + 7);
      if (i === 0) this.panels.path.key([...a.latents.map((n, k) => [n, theme.cycle[k % 7]]), ...(shared ? a.latents.map((n, k) => [n + ' right', theme.cycle[(k + 2) % 7]]) : [])]);
      return { f, tracks, shared };
    });
    return { plots };
  }

  overPath(ctx, { plots }, theme) {
    for (const { f, tracks, shared } of plots) for (const t of tracks) {
      const u = t.side === 'a' ? this.u : aligned(this.sides.a, this.sides.b, this.u), past = t.points.filter(p => p.u <= u), colour = theme.cycle[(t.k + (t.side === 'b' && shared ? 2 : 0)) % 7];
      curve(ctx, f, past.map(p => p.x), past.map(p => p.y), colour, { width: 1.6 });
      if (past.length) dot(ctx, f.x(past.at(-1).x), f.y(past.at(-1).y), 4.5, colour, theme.card);
    }
  }

  /** All latents that have a map, and the size of a cell. */
  mapsOf(width, height) {
    const shown = this.both().filter(([, t]) => t.inner && t.arrays.cell_path).flatMap(([side, trace]) => trace.latents.map(latent => ({ side, trace, latent })));
    if (!shown.length) return { shown };
    const [rows, cols] = this.sides.a.look.shape, each = width / shown.length;
    return { shown, rows, cols, each, s: Math.min((each - 20) / cols, (height - 30) / rows) };
  }

  mapsHeight(width, height) { const { shown, rows, s } = this.mapsOf(width, height); return shown.length ? Math.min(height, Math.ceil(rows * s) + 30) : height; }

  /** Places of the maps. */
  baseMaps(ctx, width, height, theme) {
    const { shown, rows, cols, each, s } = this.mapsOf(width, height);
    if (!shown.length) return null;
    shown.forEach((m, i) => Object.assign(m, { s, left: Math.round((i + .5) * each - cols * s / 2), top: 6 }));
    return { maps: shown };
  }

  overMaps(ctx, { maps }, theme, width, height) {
    for (const { side, trace, latent, s, left, top } of maps) {
      const [rows, cols] = trace.look.shape, u = side === 'a' ? this.u : aligned(this.sides.a, trace, this.u), source = sourceOf(trace, u, latent), { heat, diverging } = this.heatOf(trace, side, source, this.mapped.value);
      ctx.save(); ctx.translate(left, top);
      ctx.imageSmoothingEnabled = false;
      if (heat) ctx.drawImage(heatCanvas(rows, cols, diverging ? theme.contrast : theme.amount, (r, c) => heat[r * cols + c]), 0, 0, cols * s, rows * s);
      linesOf(ctx, { look: { ...trace.look, palette: [] } }, s, { ...theme, line: s < 8 ? 'transparent' : theme.faint, ink: theme.soft });
      if (this.cell >= 0) { ctx.strokeStyle = theme.pick; ctx.lineWidth = 2; ctx.strokeRect(this.cell % cols * s, Math.floor(this.cell / cols) * s, s, s); }
      ctx.restore();
      ctx.font = `${source === u ? '700 ' : ''}11px ${FONT}`; ctx.fillStyle = source === u ? theme.ink : theme.soft; ctx.textAlign = 'center'; ctx.textBaseline = 'bottom';
      ctx.fillText(heat ? latent : `${latent}, not written yet`, left + cols * s / 2, height - 5);
    }
  }

  pressMaps(x, y, state, first) {
    for (const { trace, s, left, top } of first && state ? state.maps : []) {
      const [rows, cols] = trace.look.shape, r = Math.floor((y - top) / s), c = Math.floor((x - left) / s);
      if (r >= 0 && c >= 0 && r < rows && c < cols) this.pickCell(r * cols + c, true);
    }
  }

  heatShare(trace, name) {
    const a = trace.arrays, L = trace.cells, order = trace.cache.order ||= restingOrder(trace);
    if (name.startsWith('pc')) { const k = +name[2], top = this.reach(trace, k); return (r, u) => .5 + .5 * a.cell_path[(u * L + order[r]) * 3 + k] / top; }
    return name === 'inner_change' ? (r, u) => Math.max(0, (a[name][u * L + order[r]] / 255 - .55) / .45) : (r, u) => a[name][u * L + order[r]] / 255;
  }

  baseHeat(ctx, width, height, theme) {
    const shown = this.both().filter(([, t]) => t.inner && t.arrays.cell_path);
    if (!shown.length) return null;
    const maps = shown.map(([side, t], i) => {
      const left = 10 + i * (width - 6) / shown.length, right = (i + 1) * (width - 6) / shown.length - 2, f = { left, right, top: 6, bottom: height - 18 }, name = this.heat.value;
      ctx.imageSmoothingEnabled = t.cells > f.bottom - f.top;
      ctx.drawImage(heatCanvas(t.cells, t.T, name.startsWith('pc') ? theme.contrast : theme.amount, this.heatShare(t, name)), left, f.top, right - left, f.bottom - f.top);
      ctx.strokeStyle = theme.line; ctx.lineWidth = 1; ctx.strokeRect(left - .5, f.top - .5, right - left + 1, f.bottom - f.top + 1);
      f.x = time => left + time / t.steps * (right - left); f.back = px => (px - left) / (right - left) * t.steps;
      ctx.font = `10px ${FONT}`; ctx.fillStyle = theme.soft; ctx.textAlign = 'center'; ctx.textBaseline = 'top';
      for (const v of whole(0, t.steps, width / shown.length > 300 ? 8 : 4).filter(v => v > 0)) ctx.fillText(short(v), f.x(v - .5), f.bottom + 5);
      return { f, side, trace: t };
    });
    return { maps };
  }

  overHeat(ctx, { maps }, theme) {
    for (const { f, side, trace } of maps) {
      const u = side === 'a' ? this.u : aligned(this.sides.a, trace, this.u);
      cursor(ctx, f, (u + .5) / trace.U, theme);
      if (this.cell < 0) continue;
      const row = trace.cache.order.indexOf(this.cell), each = (f.bottom - f.top) / trace.cells;
      ctx.strokeStyle = theme.pick; ctx.lineWidth = 1; ctx.strokeRect(f.left - 2, f.top + row * each - .5, f.right - f.left + 4, Math.max(2, each) + 1);
    }
  }

  pressHeat(x, y, s, first) {
    const hit = s?.maps.find(m => x >= m.f.left && x <= m.f.right);
    if (!hit) return;
    this.pause();
    const row = Math.floor((y - hit.f.top) / (hit.f.bottom - hit.f.top) * hit.trace.cells);
    if (first && row >= 0 && row < hit.trace.cells) { this.cell = hit.trace.cache.order[row]; this.influence(); this.redraw('cell', 'path'); }
    this.seekTime(hit.f.back(x) * (this.sides.a.steps / hit.trace.steps) + .5 / hit.trace.U);
  }

  cellName(c) { const cols = this.look().shape[1]; return `row ${Math.floor(c / cols) + 1}, column ${c % cols + 1}`; }

  baseCell(ctx, width, height, theme) {
    const a = this.sides.a, title = this.panels?.cell.title;
    if (!title) return null;
    if (!a || this.cell < 0 || this.cell >= a.cells) {
      title.textContent = 'A cell';
      ctx.font = `12px ${FONT}`; ctx.fillStyle = theme.soft; ctx.textAlign = 'center'; ctx.textBaseline = 'middle';
      ctx.fillText('click a cell: its answers and how sure they are', width / 2, height / 2);
      return {};
    }
    const c = this.cell, curves = [], strips = [];
    for (const [side, t] of this.both()) {
      const lens = this.lensOf(t), at = t.inner ? framesOf(t, lens ? 'cycle' : 'update') : framesOf(t, 'step'), reads = at.map(u => readAt(t, u, lens));
      curves.push({ x: this.xs(t, at), y: reads.map(r => r.sure ? r.sure[c] : NaN), colour: theme.cycle[side === 'a' ? 0 : 1], ...this.style(side) });
      strips.push([side, t, flips(t, c, lens)]);
    }
    const f = frame(width, height - 22 * strips.length + 2, this.span(), [0, 1.05]);
    f.top += 22 * strips.length - 4; f.bottom += 22 * strips.length - 2;
    const flat = f.y; f.y = v => f.bottom - v / 1.05 * (f.bottom - f.top);
    axes(ctx, f, whole(...this.span(), 8), [0, .5, 1], theme);
    for (const k of curves) curve(ctx, f, k.x, k.y, k.colour, k);
    strips.forEach(([side, t, found], i) => this.strip(ctx, f, 4 + 21 * i, t, found, c, theme));
    const solution = a.arrays.solution?.[c], symbol = t => (a.look.symbols[t] || '').trim();
    title.textContent = `${this.cellName(c)}: how sure` + (solution && symbol(solution) ? ` (solution ${symbol(solution)})` : '');
    return { f };
  }

  /** The answers of a cell one after the other, on a line. */
  strip(ctx, f, top, t, found, c, theme) {
    const blank = u => t.inner && sourceOf(t, u, this.lensOf(t)) < 0;
    found.forEach(({ update, token }, i) => {
      const from = f.x((i ? update : 0) / t.U), to = f.x(i + 1 < found.length ? found[i + 1].update / t.U : t.steps), symbol = (t.look.symbols[token] || '').trim(), solution = t.arrays.solution?.[c], wrong = solution && solution !== token;
      ctx.fillStyle = t.look.palette.length ? t.look.palette[token] : blank(update) || givensOf(t)[c] ? theme.given : wrong ? theme.mistaken : theme.changed;
      ctx.fillRect(from, top, Math.max(1, to - from - 1), 16);
      if (t.look.palette.length && wrong) { ctx.fillStyle = LIGHT.wrong; ctx.fillRect(from, top + 14, Math.max(1, to - from - 1), 3); }
      if (!symbol || to - from < 9) return;
      ctx.fillStyle = t.look.palette.length ? LIGHT.ink : wrong ? theme.wrong : theme.ink; ctx.font = `600 11px ${FONT}`; ctx.textAlign = 'center'; ctx.textBaseline = 'middle'; ctx.fillText(symbol, (from + to) / 2, top + 8.5);
    });
  }

  // ---- who reads whom

  influenceKey(side) { const t = this.sides[side]; return t ? `${side} ${Math.floor((side === 'a' ? this.u : aligned(this.sides.a, t, this.u)) / t.U) + 1} ${this.cell}` : ''; }

  influence() {
    if (!['reads', 'read', 'patch'].includes(this.shade?.value) || this.cell < 0 || this.playing) return;
    clearTimeout(this.soon);
    this.soon = setTimeout(() => { for (const [side] of this.both()) this.fetchInfluence(side); }, 120);
  }

  async fetchInfluence(side) {
    const t = this.sides[side], name = this.influenceKey(side), step = +name.split(' ')[1], L = t.cells, cell = this.cell, what = this.shade.value === 'patch' ? 'patch' : 'reads', known = this.influences.get(name) || {};
    if (known[what]) return this.draw();
    if (t.arrays.reads && what === 'reads') {
      const at = Math.max(0, t.reads_at.findLastIndex(s => s <= step)), from = at * L * L;
      this.influences.set(name, { reads: scaled(Array.from({ length: L }, (_, i) => i === cell ? 0 : t.arrays.reads[from + cell * L + i])), read: scaled(Array.from({ length: L }, (_, i) => i === cell ? 0 : t.arrays.reads[from + i * L + cell])) });
      return this.draw();
    }
    if (!this.live) return;
    const { message, buffers } = await this.ask('reads', { side, cell, step, what });
    if (!message.ok) return;
    const both = new Uint8Array(buffers[0].buffer || buffers[0], buffers[0].byteOffset || 0, buffers[0].byteLength);
    this.influences.set(name, what === 'patch' ? { ...known, patch: both } : { ...known, reads: both.slice(0, L), read: both.slice(L) });
    this.draw();
  }

  // ---- export

  async export(what) {
    const a = this.sides.a;
    if (!a) return;
    const name = (a.puzzle || 'puzzle') + (what === 'png' ? `-step-${Math.floor(this.u / a.U) + 1}` : '');
    if (what === 'png') return this.picture().toBlob(blob => save(name + '.png', blob));
    const { message, buffers } = await this.ask('export', { what });
    if (message.ok) save(`${name}.${what}`, new Blob([buffers[0]], { type: { gif: 'image/gif', mp4: 'video/mp4', html: 'text/html', npz: 'application/octet-stream' }[what] }));
  }

  /** What is seen, as one canvas. */
  picture() {
    const box = this.root.getBoundingClientRect(), area = this.root.querySelector('.trm-main-area').getBoundingClientRect(), canvas = document.createElement('canvas'), scale = 2, theme = this.theme.colours;
    canvas.width = Math.round(box.width * scale); canvas.height = Math.round((area.height + 44) * scale);
    const ctx = canvas.getContext('2d');
    ctx.scale(scale, scale); ctx.fillStyle = theme.paper; ctx.fillRect(0, 0, box.width, area.height + 44);
    ctx.fillStyle = theme.ink; ctx.font = `600 14px ${FONT}`; ctx.textBaseline = 'top'; ctx.fillText(`${this.sides.a.name || this.sides.a.puzzle} · ${nameOf(this.sides.a, this.u)}`, 14, 12);
    for (const c of this.root.querySelectorAll('.trm-main-area canvas')) { const r = c.getBoundingClientRect(); if (r.width) ctx.drawImage(c, r.left - box.left, r.top - area.top + 38, r.width, r.height); }
    ctx.font = `600 11px ${FONT}`; ctx.textBaseline = 'top'; ctx.fillStyle = theme.soft;
    for (const p of this.root.querySelectorAll('.trm-title, .trm-caption')) { const r = p.getBoundingClientRect(); if (r.width) ctx.fillText(p.innerText.replace(/\n/g, '  '), r.left - box.left, r.top - area.top + 38); }
    return canvas;
  }
}

/** Numbers as bytes, the largest 255. */
export function scaled(values) {
  const top = Math.max(...values, 1e-12);
  return Uint8Array.from(values, v => Math.round(255 * v / top));
}

// ------------------------------------------------------------------ a running training

/** Columns of a pack of rows: {train: {key: {x, y}}, eval: {...}}, without what a row does not have. */
export function readRows({ about, arrays }) {
  const found = {};
  for (const kind of ['train', 'eval']) {
    const keys = about[kind], table = arrays[kind], n = keys.length; found[kind] = {};
    for (let k = 1; k < n; k++) {
      const x = [], y = [];
      for (let r = 0; r < table.shape[0]; r++) if (!Number.isNaN(table[r * n + k])) { x.push(table[r * n]); y.push(table[r * n + k]); }
      if (x.length) found[kind][keys[k]] = { x, y };
    }
  }
  return found;
}

const CHARTS = [['Loss', ['loss', 'lm_loss'], 1], ['Right, %', ['exact_accuracy', 'accuracy'], 100], ['q_halt right, %', ['q_halt_accuracy', 'halting_accuracy'], 100], ['ACT steps', ['steps'], 1]];

export class Monitor {
  constructor(model, root) {
    this.model = model; this.root = root;
    root.classList.add('trm', 'trm-monitor'); root.dataset.lmSuppressShortcuts = 'true'; root.monitor = this; ownKeys(root);
    this.span = h('input', { type: 'range', min: '0', max: '100', value: '25', class: 'trm-slider', 'aria-label': 'smoothing', oninput: () => this.relayout() });
    this.spanText = h('span', { class: 'trm-where' });
    this.log = h('input', { type: 'checkbox', onchange: () => this.relayout() });
    this.extra = h('select', { title: 'another metric', onchange: () => this.relayout() });
    this.title = h('strong', {}); this.said = h('span', { class: 'trm-soft' });
    this.stopButton = button('Stop watching', 'stop reading the file', () => this.model.send({ type: 'stop' }));
    this.panels = [...CHARTS.map(([title, keys, scale]) => this.chart(title, keys, scale)), this.chart('', null, 1, [this.extra])];
    root.replaceChildren(h('div', { class: 'trm-bar' }, this.title, this.said, h('span', { class: 'trm-space' }), this.stopButton, iconButton('theme', 'light or dark', () => this.theme.turn())),
      h('div', { class: 'trm-bar trm-transport' }, labelled('smoothing', this.span), this.spanText, labelled('log loss', this.log)), h('div', { class: 'trm-panels' }, ...this.panels.map(p => p.el)));
    this.theme = new Theme(root, () => this.relayout());
    const on = (name, f) => { model.on(name, f); (this.offs ||= []).push(() => model.off(name, f)); };
    on('change:pack', () => this.load()); on('change:status', () => this.say());
    this.resized = new ResizeObserver(() => { const w = root.clientWidth; if (w && w !== this.seenWidth) { this.seenWidth = w; this.relayout(); } });
    this.resized.observe(root);
    this.say(); this.load();
  }

  get rowsBack() { return Math.round(100 ** (+this.span.value / 100)); }

  chart(title, keys, scale, tools = []) {
    const panel = new Panel(title, 190, { tools, base: (...x) => this.base(panel, keys || [this.extra.value], scale, title === 'Loss', ...x), over: (...x) => this.overlay(...x), press: (x, y, s) => { if (s) { this.at = s.f.back(x); this.paint(); } } });
    return panel;
  }

  async load() {
    const data = this.model.get('pack');
    if (!data?.byteLength) return;
    const found = unpack(await inflate(data));
    this.data = readRows(found); this.about = found.about;
    this.say();
    const shown = CHARTS.flatMap(c => c[1]), keys = [...new Set([...Object.keys(this.data.train), ...Object.keys(this.data.eval)])].filter(k => !shown.includes(k));
    options(this.extra, keys.map(k => [k, k]), keys.includes(this.extra.value) ? this.extra.value : keys.includes('lr') ? 'lr' : keys[0]);
    this.relayout();
  }

  say() { const said = this.model.get('status'), s = said?.name ? said : this.about || {}; this.title.textContent = s.name || ''; this.said.textContent = s.text || ''; this.said.className = s.level === 'error' ? 'trm-bad' : 'trm-soft'; this.stopButton.hidden = !s.watching; }

  base(panel, keys, scale, loss, ctx, width, height, theme) {
    const curves = [], names = [], log = loss && this.log.checked, dots = [];
    keys.forEach((k, i) => {
      const colour = theme.cycle[i], t = this.data?.train[k], e = this.data?.eval[k], times = y => y.map(v => log ? Math.max(v * scale, 1e-9) : v * scale);
      if (t) { curves.push({ x: t.x, y: times(t.y), colour, width: 1, alpha: .28 }, { x: t.x, y: times(smooth(t.y, this.rowsBack)), colour, width: 2, label: k }); }
      if (e) { curves.push({ x: e.x, y: times(e.y), colour, width: 1.2, dash: [4, 3], label: k + ', evaluation' }); dots.push([e.x, times(e.y), colour]); }
      if (t || e) names.push([k.replaceAll('_', ' '), colour]);
    });
    if (!curves.length) { ctx.font = `12px ${FONT}`; ctx.fillStyle = theme.soft; ctx.textAlign = 'center'; ctx.fillText('nothing yet', width / 2, height / 2); return null; }
    const xs = range(curves.map(c => c.x), 0), found = range(curves.map(c => c.y), ...(scale === 100 ? [0, 100] : log ? [] : [0]));
    const f = plotCurves(ctx, width, height, theme, { curves, xs, ys: log ? [found[0] / 1.3, found[1] * 1.3] : [found[0] - .03 * (found[1] - found[0]), found[1] + .08 * (found[1] - found[0] || 1)], log });
    for (const [x, y, colour] of dots) x.forEach((v, i) => dot(ctx, f.x(v), f.y(y[i]), 3, theme.card, colour));
    panel?.key(panel.el.querySelector('select') ? [] : names);
    return { f, curves: curves.filter(c => c.label) };
  }

  overlay(ctx, { f, curves }, theme) {
    if (this.at === undefined) return;
    cursor(ctx, f, this.at, theme);
    const lines = curves.map(c => { let i = 0; while (i + 1 < c.x.length && c.x[i + 1] <= this.at) i++; return [`${c.label.replaceAll('_', ' ')} ${short(c.y[i])}`, c.colour]; });
    ctx.font = `600 10px ${FONT}`; ctx.textBaseline = 'top'; ctx.textAlign = f.x(this.at) > (f.left + f.right) / 2 ? 'right' : 'left';
    lines.forEach(([text, colour], i) => {
      const wide = ctx.measureText(text).width, left = ctx.textAlign === 'left' ? f.x(this.at) + 6 : f.x(this.at) - 6 - wide;
      ctx.globalAlpha = .88; ctx.fillStyle = theme.card; ctx.fillRect(left - 3, f.top + 12 + 13 * i, wide + 6, 14); ctx.globalAlpha = 1;
      ctx.fillStyle = colour; ctx.fillText(text, f.x(this.at) + (ctx.textAlign === 'left' ? 6 : -6), f.top + 14 + 13 * i);
    });
  }

  relayout() {
    if (!this.theme) return;
    if (!this.root.clientWidth) return later(this);
    this.stale = 0;
    const n = this.rowsBack;
    this.spanText.textContent = n === 1 ? 'none' : `${n} rows`;
    this.root.classList.toggle('trm-narrow', this.root.clientWidth < 700); this.root.classList.toggle('trm-big', this.root.clientWidth >= 1150);
    for (const p of this.panels) p.rebuild(this.theme.colours);
    this.paint();
  }
  paint() { for (const p of this.panels) p.frame(this.theme.colours); this.noted?.(); }
  state() { return { smooth: this.span.value, log: this.log.checked ? '1' : '', metric: this.extra.value }; }
  restore(s) {
    if (s.smooth >= 0 && s.smooth <= 100) this.span.value = s.smooth;
    this.log.checked = s.log === '1';
    if ([...this.extra.options].some(o => o.value === s.metric)) this.extra.value = s.metric;
    this.relayout();
  }
  close() { this.theme.close(); this.resized.disconnect(); this.offs.forEach(f => f()); }
}

// ------------------------------------------------------------------ labs: many puzzles at once

/** Bytes of a pack of many puzzles: {about, arrays} with sizes. */
export function readMany(data) {
  const { about, arrays } = unpack(data), [n, steps, cells] = arrays.answers.shape;
  return { ...about, arrays, n, steps, cells, U: about.schedule?.length || 1 };
}

/** First step (from 1) at which a signal (n, steps) has been above a threshold `often` times in a row, not before step `least`; the last step where there is none. */
export function stopsAt(signal, steps, threshold, least = 1, often = 1) {
  return Int32Array.from({ length: signal.length / steps }, (_, i) => {
    let run = 0;
    for (let s = 0; s < steps; s++) { run = signal[i * steps + s] > threshold ? run + 1 : 0; if (run >= often && s + 1 >= least) return s + 1; }
    return steps;
  });
}

/** What a halting rule is worth: share right, mean steps, and who stopped wrong though right later, or right though stopped later than needed. */
export function worth(right, steps, stops) {
  let ok = 0, total = 0, early = 0, late = 0;
  const n = stops.length, at = (i, s) => right[i * steps + s - 1];
  for (let i = 0; i < n; i++) {
    total += stops[i];
    if (at(i, stops[i])) { ok++; if (stops[i] > 1 && at(i, stops[i] - 1)) late++; }
    else for (let s = stops[i] + 1; s <= steps; s++) if (at(i, s)) { early++; break; }
  }
  return { accuracy: ok / n, cost: total / n, wrong: n - ok, early, late };
}

/** Accuracy and cost at thresholds from the highest to the lowest value of a signal, about `most` of them. */
export function tradeOff(signal, right, steps, least, often, most = 120) {
  const values = Float32Array.from(signal).sort(), n = Math.min(most, values.length), seen = new Map();
  for (let k = 0; k <= n; k++) {
    const threshold = k < n ? values[Math.round(k * (values.length - 1) / Math.max(1, n - 1))] : values[0] - 1, w = worth(right, steps, stopsAt(signal, steps, threshold, least, often));
    seen.set(w.cost.toFixed(6) + ' ' + w.accuracy, { threshold, ...w });
  }
  return [...seen.values()].sort((a, b) => a.cost - b.cost);
}

/** 1 where an answer (n, steps, cells) is the solution. */
export function rightAt({ arrays: { answers, solution }, n, steps, cells }) {
  const right = new Uint8Array(n * steps);
  for (let i = 0; i < n; i++) for (let s = 0; s < steps; s++) right[i * steps + s] = wrongCells(answers, (i * steps + s) * cells, solution, i * cells, cells) === 0;
  return right;
}

function wrongCells(answers, from, solution, at, cells) {
  let n = 0;
  for (let c = 0; c < cells; c++) n += solution[at + c] !== 0 && answers[from + c] !== solution[at + c];
  return n;
}

/** A lab of many puzzles: what all three share. */
class Lab {
  constructor(model, root, name) {
    Object.assign(this, { model, root, live: model.get('live'), picked: -1, panels: {} });
    root.classList.add('trm', 'trm-lab', 'trm-' + name); root.tabIndex = 0; root.dataset.lmSuppressShortcuts = 'true'; root.lab = this; ownKeys(root);
    this.progress = h('div', { class: 'trm-progress' }, h('div', {}));
    this.message = h('span', { class: 'trm-says', role: 'status' });
    this.note = h('div', { class: 'trm-note', hidden: true }, this.message, iconButton('close', 'close', () => { this.note.hidden = true; }));
    this.thumbs = h('div', { class: 'trm-thumbs' }); this.about = h('div', { class: 'trm-about' });
    this.summary = h('span', { class: 'trm-soft' });
  }

  begin() {
    this.theme = new Theme(this.root, () => this.relayout());
    const on = (name, f) => { this.model.on(name, f); (this.offs ||= []).push(() => this.model.off(name, f)); };
    on('change:pack', () => this.takePack()); on('change:status', () => this.say());
    this.heard?.(on);
    this.resized = new ResizeObserver(() => { const w = this.root.clientWidth; if (w && w !== this.seenWidth) { this.seenWidth = w; this.relayout(); } });
    this.resized.observe(this.root);
    this.takePack(); this.say();
  }

  takePack() { this.loaded = this.load().catch(e => console.error(this.model.get('kind') + ': a pack cannot be read', e)); }

  async say() {
    await this.loaded;
    const s = this.model.get('status') || {};
    this.busy = !!s.busy;
    this.progress.firstChild.style.width = (s.busy ? 100 * (s.done || 0) : 0) + '%'; this.progress.classList.toggle('trm-busy', this.busy);
    this.note.hidden = !s.text || s.level === 'quiet'; this.note.className = 'trm-note trm-' + (s.level || 'info'); this.message.textContent = s.text || '';
    if (this.stopButton) this.stopButton.hidden = !this.busy;
    this.told?.();
  }

  async load() {
    const turn = this.turn = (this.turn || 0) + 1, data = this.model.get('pack'), bytes = data?.byteLength ? await inflate(data) : null;
    if (turn !== this.turn) return;
    this.data = bytes ? readMany(bytes) : null;
    if (this.data) { if (this.picked >= this.data.n) this.picked = -1; this.took(); }
    this.relayout();
  }

  cancelButton() { return this.stopButton = button('Cancel', 'leave off; what is found so far stays', () => this.model.send({ type: 'cancel' }), 'trm-cancel'); }
  tell(name, value) { if (this.live && this.model.set) { this.model.set(name, value); this.model.save_changes(); } }

  /** A small board of puzzle i; answer is where its tokens start in `tokens`. */
  thumb(i, tokens, from, { width = 118, before = null, text = [], title = '', big = false } = {}) {
    const d = this.data, L = d.cells, part = (x, at) => x.subarray(at, at + L), now = part(tokens, from), blank = d.look.blank, solution = d.arrays.solution;
    const canvas = h('canvas', { class: 'trm-board' }), el = h('figure', { class: 'trm-thumb' + (i === this.picked ? ' trm-on' : '') + (big ? ' trm-large' : ''), title, 'data-puzzle': String(i) }, canvas, h('figcaption', {}, ...text));
    const inputs = part(d.arrays.inputs, i * L), wrong = solution ? Uint8Array.from(now, (t, c) => solution[i * L + c] !== 0 && t !== solution[i * L + c]) : null;
    drawBoard(canvas, width, { look: d.look, tokens: now, given: Uint8Array.from(inputs, t => blank !== null && t !== blank), before: before === null ? null : part(tokens, before), wrong, sure: null, cell: -1 }, this.theme.colours);
    el.addEventListener('click', () => { this.picked = this.picked === i ? -1 : i; this.relayout(); });
    return el;
  }

  nameOf(i) { return this.data.names?.[i] ?? `puzzle ${i + 1}`; }

  relayout() {
    const w = this.root.clientWidth;
    if (!this.theme || !this.data) return;
    if (!w) return later(this);
    this.stale = 0;
    this.root.classList.toggle('trm-narrow', w < 700); this.root.classList.toggle('trm-big', w >= 1150);
    this.arrange?.(w);
    for (const p of Object.values(this.panels)) p.rebuild(this.theme.colours);
    this.words(); this.paint();
  }
  words() {}
  paint() { if (!this.data) return; for (const p of Object.values(this.panels)) p.frame(this.theme.colours); this.painted?.(); this.noted?.(); this.shown = this.now ?? 0; }
  draw() { if (this.pending) return; this.pending = true; requestAnimationFrame(() => { this.pending = false; this.paint(); }); }
  export() { pictureOf(this.root, this.root.querySelector('.trm-area'), this.heading()).toBlob(blob => save(this.heading().replace(/\W+/g, '-') + '.png', blob)); }
  heading() { return this.model.get('kind'); }
  close() { this.pause?.(); this.theme.close(); this.resized.disconnect(); this.offs.forEach(f => f()); }
}

/** What is seen of an area of a widget, as one canvas. */
function pictureOf(root, area, heading) {
  const box = area.getBoundingClientRect(), canvas = document.createElement('canvas'), scale = 2, style = getComputedStyle(root);
  canvas.width = Math.round((box.width + 20) * scale); canvas.height = Math.round((box.height + 44) * scale);
  const ctx = canvas.getContext('2d'), x = r => r.left - box.left + 10, y = r => r.top - box.top + 34;
  ctx.scale(scale, scale); ctx.fillStyle = style.backgroundColor; ctx.fillRect(0, 0, canvas.width, canvas.height);
  ctx.fillStyle = style.color; ctx.font = `600 14px ${FONT}`; ctx.textBaseline = 'top'; ctx.fillText(heading, 10, 10);
  for (const c of area.querySelectorAll('canvas')) { const r = c.getBoundingClientRect(); if (r.width) ctx.drawImage(c, x(r), y(r), r.width, r.height); }
  ctx.font = `600 11px ${FONT}`;
  for (const p of area.querySelectorAll('.trm-title, figcaption, .trm-about, .trm-tile')) { const r = p.getBoundingClientRect(); if (r.width) p.innerText.split('\n').forEach((line, k) => ctx.fillText(line, x(r), y(r) + 14 * k)); }
  return canvas;
}

const THUMBS = 12;

// ------------------------------------------------------------------ a map of latents

const HUES = [['end', 'right at the end'], ['now', 'right now'], ['wrong', 'wrong cells now'], ['q', 'q_halt now'], ['halt', 'step of halting'], ['rating', 'difficulty']];
const PLANES = [['01', 'components 1, 2'], ['02', 'components 1, 3'], ['12', 'components 2, 3']];

export class LatentMap extends Lab {
  constructor(model, root) {
    super(model, root, 'map');
    Object.assign(this, { now: 0, playing: false, over: -1, chosen: new Set(), brush: null });
    const pick = (name, entries, title, f) => this[name] = options(h('select', { title, onchange: f || (() => this.relayout()) }), entries);
    this.slider = h('input', { type: 'range', min: '0', max: '0', step: 'any', value: '0', class: 'trm-slider', 'aria-label': 'time', oninput: () => { this.pause(); this.seek(Math.round(+this.slider.value)); } });
    this.where = h('span', { class: 'trm-where' });
    this.playButton = iconButton('play', 'play or pause (space)', () => this.playing ? this.pause() : this.play()); this.playButton.classList.add('trm-play');
    this.clearButton = button('Clear', 'select nothing (Escape)', () => this.select([]));
    this.panels = { map: new Panel('Where the latents are', 420, { base: (...x) => this.baseMap(...x), over: (...x) => this.overMap(...x) }),
      halt: new Panel('Stops at step', 120, { base: (...x) => this.baseHalt(...x), over: () => {}, press: (x, y, s, first) => this.pressHalt(x, s, first) }),
      ends: new Panel('Wrong cells by step', 120, { base: (...x) => this.baseWrong(...x), over: (ctx, s, theme) => cursor(ctx, s.f, (this.at() + 1) / this.data.U, theme), press: (x, y, s) => { if (s) { this.pause(); this.seek(this.nearest(s.f.back(x))); } } }) };
    root.replaceChildren(h('div', { class: 'trm-bar' }, labelled('latent', pick('latent', [], 'the latent that is shown', () => { this.seek(this.nearest(this.time())); this.relayout(); })), pick('plane', PLANES, 'which components'), labelled('colour', pick('hue', HUES, 'what the colours show')), h('span', { class: 'trm-space' }), this.summary, this.clearButton, button('Picture', 'save what is seen', () => this.export()), iconButton('theme', 'light or dark', () => this.theme.turn())),
      this.progress, this.note, h('div', { class: 'trm-bar trm-transport' }, iconButton('first', 'to the beginning (Home)', () => { this.pause(); this.seek(0); }), this.playButton, this.slider, this.where, options(h('select', { title: 'ACT steps a second', onchange: e => { this.rate = +e.target.value; } }), [[.5, 'half a step a second'], [1, '1 step a second'], [2, '2 steps a second'], [4, '4 steps a second']], 2)),
      h('div', { class: 'trm-area' }, h('div', { class: 'trm-left' }, this.panels.map.el), h('div', { class: 'trm-right' }, h('div', { class: 'trm-panels' }, this.panels.halt.el, this.panels.ends.el), this.about, this.thumbs)));
    this.rate = 2;
    this.mouse();
    root.addEventListener('keydown', e => this.keyed(e));
    this.begin();
  }

  heard(on) { on('change:selected', () => { const s = this.model.get('selected') || []; if ([...this.chosen].join() !== s.join()) { this.chosen = new Set(s); this.relayout(); } }); }

  took() {
    const d = this.data;
    d.right = d.arrays.solution ? rightAt(d) : null;
    d.wrong = d.arrays.solution ? Uint16Array.from({ length: d.n * d.steps }, (_, k) => wrongCells(d.arrays.answers, k * d.cells, d.arrays.solution, Math.floor(k / d.steps) * d.cells, d.cells)) : null;
    d.halt = stopsAt(Float32Array.from(d.arrays.halts), d.steps, .5);
    for (let i = 0; i < d.n; i++) if (!d.arrays.halts.subarray(i * d.steps, (i + 1) * d.steps).some(Boolean)) d.halt[i] = d.steps + 1;
    options(this.latent, d.written.map(n => [n, n]), d.written.includes(this.latent.value) ? this.latent.value : d.readout);
    const hues = HUES.filter(([k]) => (d.right || !['end', 'now', 'wrong'].includes(k)) && (d.arrays.rating || k !== 'rating'));
    options(this.hue, hues, hues.some(([k]) => k === this.hue.value) ? this.hue.value : d.right ? 'end' : 'q');
    this.chosen = new Set((this.model.get('selected') || []).filter(i => i < d.n));
    this.panels.ends.el.hidden = !d.wrong;
    this.order = null;
  }

  /** Updates that write the latent. */
  updates() {
    const d = this.data, name = this.latent.value;
    if (this.order?.name !== name) this.order = Object.assign(Array.from({ length: d.steps * d.U }, (_, u) => u).filter(u => d.schedule[u % d.U][0] === name), { name });
    return this.order;
  }
  at() { return this.updates()[Math.min(this.updates().length - 1, Math.floor(this.now + 1e-9))]; }
  time() { return this.data ? (this.at() + 1) / this.data.U : 0; }
  step() { return Math.floor(this.at() / this.data.U); }
  nearest(time) { const all = this.updates(); let i = 0; while (i + 1 < all.length && all[i + 1] + 1 <= time * this.data.U + 1e-6) i++; return i; }
  seek(now) { this.now = Math.max(0, Math.min(this.updates().length - 1, now)); this.slider.value = String(this.now); this.draw(); }
  setStep(step) { this.pause(); this.now = this.nearest(step); this.paint(); }

  play() {
    const all = this.updates();
    if (this.now >= all.length - 1) this.now = 0;
    this.playing = true; this.playButton.replaceChildren(icon('pause'));
    let then = performance.now();
    const tick = clock => {
      if (!this.playing) return;
      const step = this.step();
      this.now = Math.min(all.length - 1, this.now + Math.max(0, clock - then) / 1000 * this.rate * all.length / this.data.steps); then = Math.max(then, clock);
      this.slider.value = String(this.now);
      if (this.step() !== step) this.words();
      if (this.now >= all.length - 1) this.pause();
      this.paint(); requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }
  pause() { if (this.playing) { this.playing = false; this.playButton.replaceChildren(icon('play')); this.words(); } }

  keyed(e) {
    if (e.target.matches('input:not([type=range]), select') || e.ctrlKey || e.metaKey || e.altKey) return;
    const keys = { ArrowLeft: () => { this.pause(); this.seek(Math.ceil(this.now) - 1); this.words(); }, ArrowRight: () => { this.pause(); this.seek(Math.floor(this.now) + 1); this.words(); }, Home: () => this.seek(0), End: () => this.seek(Infinity), Escape: () => this.select([]) };
    if (e.key === ' ' && e.target.tagName !== 'BUTTON') this.playing ? this.pause() : this.play(); else if (keys[e.key]) keys[e.key](); else return;
    e.preventDefault(); e.stopPropagation();
  }

  place(i, k) { const { arrays: { path }, steps, U } = this.data, u = this.updates()[k], from = (i * steps * U + u) * 3, [a, b] = this.plane.value; return [path[from + +a], path[from + +b]]; }

  /** Where puzzle i is now, between two updates while it plays. */
  spot(i) {
    const k = Math.floor(this.now), [x, y] = this.place(i, k), share = this.now - k;
    if (share < 1e-6) return [x, y];
    const [x2, y2] = this.place(i, k + 1), s = share * share * (3 - 2 * share);
    return [x + (x2 - x) * s, y + (y2 - y) * s];
  }

  colour(i, theme) {
    const d = this.data, s = this.step(), at = i * d.steps + s, hue = this.hue.value;
    if (hue === 'end') return d.right[(i + 1) * d.steps - 1] ? theme.cycle[0] : theme.cycle[1];
    if (hue === 'now') return d.right[at] ? theme.cycle[0] : theme.cycle[1];
    const share = hue === 'wrong' ? d.wrong[at] / 40 : hue === 'q' ? 1 / (1 + Math.exp(-d.arrays.q_halt[at])) : hue === 'halt' ? (d.halt[i] - 1) / d.steps : Math.log1p(d.arrays.rating[i]) / Math.log1p(this.hardest());
    return `rgb(${ramp(theme.amount, .18 + .82 * share).join()})`;
  }
  hardest() { return this.data.hardest ||= Math.max(...this.data.arrays.rating, 1); }

  baseMap(ctx, width, height, theme) {
    const d = this.data, count = this.updates().length, xs = [Infinity, -Infinity], ys = [Infinity, -Infinity];
    for (let i = 0; i < d.n; i++) for (let k = 0; k < count; k++) { const [x, y] = this.place(i, k); if (x < xs[0]) xs[0] = x; if (x > xs[1]) xs[1] = x; if (y < ys[0]) ys[0] = y; if (y > ys[1]) ys[1] = y; }
    const f = frame(width, height, padded(xs, .04), padded(ys, .04));
    f.left = 16; f.right = width - 12; f.top = 10; f.bottom = height - 22;
    const [x0, x1] = padded(xs, .04), scale = (f.right - f.left) / (x1 - x0 || 1);
    f.x = v => f.left + (v - x0) * scale; f.back = px => x0 + (px - f.left) / scale;
    ctx.strokeStyle = theme.faint; ctx.lineWidth = 1; ctx.strokeRect(f.left - 4.5, f.top - 4.5, f.right - f.left + 9, f.bottom - f.top + 9);
    const quiet = this.chosen.size > 0 || this.picked >= 0;
    ctx.lineWidth = .7; ctx.lineJoin = 'round'; ctx.strokeStyle = theme.soft; ctx.globalAlpha = quiet ? .05 : .12;
    for (let i = 0; i < d.n; i++) { ctx.beginPath(); for (let k = 0; k < count; k++) { const [x, y] = this.place(i, k); k ? ctx.lineTo(f.x(x), f.y(y)) : ctx.moveTo(f.x(x), f.y(y)); } ctx.stroke(); }
    ctx.globalAlpha = 1;
    ctx.font = `10px ${FONT}`; ctx.fillStyle = theme.soft; ctx.textAlign = 'center'; ctx.textBaseline = 'top';
    const [a, b] = this.plane.value, share = k => d.explained ? ` (${Math.round(100 * d.explained[k])}%)` : '';
    ctx.fillText(`component ${+a + 1}${share(a)}, up: component ${+b + 1}${share(b)}; drag to select, click for one`, (f.left + f.right) / 2, f.bottom + 8);
    this.panels.map.key(['end', 'now'].includes(this.hue.value) ? [['right', theme.cycle[0]], ['wrong', theme.cycle[1]]] : [['little', `rgb(${ramp(theme.amount, .3).join()})`], ['much', `rgb(${ramp(theme.amount, 1).join()})`]]);
    return { f };
  }

  overMap(ctx, { f }, theme) {
    const d = this.data, some = this.chosen.size > 0, main = [...new Set([this.picked, this.over])].filter(i => i >= 0), upto = Math.floor(this.now);
    const trail = (i, width, alpha) => { const xy = []; for (let k = 0; k <= upto; k++) xy.push(this.place(i, k)); xy.push(this.spot(i)); curve(ctx, f, xy.map(p => p[0]), xy.map(p => p[1]), this.colour(i, theme), { width, alpha }); };
    let trails = 0;
    for (const i of this.chosen) if (trails++ < 60) trail(i, 1, .5);
    for (const i of main) trail(i, 2, 1);
    this.spots = Array.from({ length: d.n }, (_, i) => { const [x, y] = this.spot(i); return [f.x(x), f.y(y)]; });
    for (const pass of [false, true]) for (let i = 0; i < d.n; i++) {
      const front = this.chosen.has(i);
      if (front !== pass) continue;
      ctx.globalAlpha = some && !front && !main.includes(i) ? .25 : 1;
      dot(ctx, ...this.spots[i], front ? 4.2 : 3.4, this.colour(i, theme), theme.card);
    }
    ctx.globalAlpha = 1;
    for (const i of main) { dot(ctx, ...this.spots[i], 6, this.colour(i, theme), theme.pick); ctx.font = `600 11px ${FONT}`; ctx.fillStyle = theme.ink; ctx.textAlign = this.spots[i][0] > f.right - 110 ? 'right' : 'left'; ctx.textBaseline = 'middle'; ctx.fillText(this.nameOf(i), this.spots[i][0] + (ctx.textAlign === 'left' ? 10 : -10), this.spots[i][1]); }
    if (this.brush) { const [x, y, x2, y2] = this.brush; ctx.strokeStyle = theme.pick; ctx.setLineDash([4, 3]); ctx.strokeRect(Math.min(x, x2), Math.min(y, y2), Math.abs(x2 - x), Math.abs(y2 - y)); ctx.setLineDash([]); }
  }

  mouse() {
    const c = this.panels.map.canvas, at = e => { const box = c.getBoundingClientRect(); return [e.clientX - box.left, e.clientY - box.top]; };
    const near = ([x, y]) => { let best = -1, least = 12; (this.spots || []).forEach(([px, py], i) => { const far = Math.hypot(px - x, py - y); if (far < least) { least = far; best = i; } }); return best; };
    c.addEventListener('pointerdown', e => { this.root.focus({ preventScroll: true }); c.setPointerCapture?.(e.pointerId); this.from = at(e); });
    c.addEventListener('pointermove', e => {
      const [x, y] = at(e);
      if (this.from) { if (Math.hypot(x - this.from[0], y - this.from[1]) > 4 || this.brush) { this.brush = [...this.from, x, y]; this.draw(); } return; }
      const i = near([x, y]);
      if (i !== this.over) { this.over = i; this.draw(); }
    });
    c.addEventListener('pointerleave', () => { if (this.over >= 0) { this.over = -1; this.draw(); } });
    c.addEventListener('pointerup', e => {
      const from = this.from, brush = this.brush; this.from = this.brush = null;
      if (brush) { const inside = (v, a, b) => v >= Math.min(a, b) && v <= Math.max(a, b); return this.select(this.spots.map((_, i) => i).filter(i => inside(this.spots[i][0], brush[0], brush[2]) && inside(this.spots[i][1], brush[1], brush[3]))); }
      if (!from) return;
      const i = near(at(e));
      if (i < 0 && this.picked < 0) return this.select([]);
      this.picked = i === this.picked ? -1 : i; this.relayout();
    });
  }

  /** Select puzzles: here, and in Python. */
  select(list) { this.chosen = new Set(list); if (!list.length) this.picked = -1; this.tell('selected', list); this.relayout(); }

  baseHalt(ctx, width, height, theme) {
    const d = this.data, rows = [...this.counted()], high = Math.max(...d.halt.reduce((n, s) => { n[s - 1]++; return n; }, Array(d.steps + 1).fill(0)));
    const f = frame(width, height, [.5, d.steps + 1.5], [0, high * 1.08]), bars = pickOnly => { const n = Array(d.steps + 1).fill(0); for (let i = 0; i < d.n; i++) if (!pickOnly || rows[i]) n[d.halt[i] - 1]++; return n; };
    axes(ctx, f, whole(1, d.steps, width > 260 ? 8 : 4).filter(v => v >= 1 && v < d.steps - (width > 260 ? 0 : 3)), ticks(0, high, 3), theme);
    ctx.fillStyle = theme.soft; ctx.textAlign = 'center'; ctx.textBaseline = 'top'; ctx.fillText('never', f.x(d.steps + 1) - 6, f.bottom + 5);
    for (const [n, alpha] of [[bars(false), this.chosen.size ? .25 : 1], [this.chosen.size ? bars(true) : [], 1]]) n.forEach((v, k) => { ctx.globalAlpha = alpha; ctx.fillStyle = theme.cycle[0]; ctx.fillRect(f.x(k + .62), f.y(v), f.x(k + 1.38) - f.x(k + .62), f.bottom - f.y(v)); });
    ctx.globalAlpha = 1;
    return { f };
  }

  pressHalt(x, s, first) {
    const step = Math.max(1, Math.min(this.data.steps + 1, Math.round(s.f.back(x))));
    if (first) this.pressed = step;
    const [low, high] = [Math.min(this.pressed, step), Math.max(this.pressed, step)];
    this.select(Array.from(this.data.halt.keys()).filter(i => this.data.halt[i] >= low && this.data.halt[i] <= high));
  }

  counted() { return Uint8Array.from({ length: this.data.n }, (_, i) => !this.chosen.size || this.chosen.has(i)); }

  baseWrong(ctx, width, height, theme) {
    const d = this.data;
    if (!d.wrong) return null;
    const x = Array.from({ length: d.steps }, (_, s) => s + 1), rows = this.counted(), curves = [];
    for (let i = 0; i < d.n; i++) if (rows[i] || i === this.picked) curves.push({ x, y: [...d.wrong.subarray(i * d.steps, (i + 1) * d.steps)], colour: d.right[(i + 1) * d.steps - 1] ? theme.cycle[0] : theme.cycle[1], width: i === this.picked ? 2.5 : 1, alpha: i === this.picked ? 1 : Math.max(.12, Math.min(.8, 12 / d.n)) });
    const [, high] = range(curves.map(c => c.y), 0, 4), f = plotCurves(ctx, width, height, theme, { curves, xs: [.5, d.steps + .5], ys: [-.04 * high, high * 1.1], yTicks: ticks(0, high, 3) });
    return { f };
  }

  arrange(w) {
    this.root.classList.toggle('trm-middle', w < 950);
    this.panels.map.height = w < 950 ? Math.max(300, Math.min(460, Math.round(w * .5))) : Math.max(380, Math.min(620, Math.round(w * .42)));
    this.slider.max = String(this.updates().length - 1); this.now = Math.min(this.now, this.updates().length - 1); this.slider.value = String(this.now);
  }

  words() {
    const d = this.data, list = this.chosen.size ? [...this.chosen] : [], s = this.step(), share = rows => Math.round(100 * rows.filter(i => d.right[(i + 1) * d.steps - 1]).length / rows.length), all = list.length ? list : [...Array(d.n).keys()];
    this.summary.textContent = list.length ? `${list.length} of ${d.n} selected` : `${d.n} puzzles`;
    this.clearButton.hidden = !list.length && this.picked < 0;
    this.about.replaceChildren(...[d.right ? `${share(all)}% right at the end` : '', ((v = [...all].map(i => d.halt[i]).sort((a, b) => a - b)) => v[v.length >> 1] > d.steps ? 'most do not stop' : `stop at the median at step ${v[v.length >> 1]}`)()].filter(Boolean).map(t => h('span', { class: 'trm-soft' }, t)));
    const hard = i => d.wrong ? -d.wrong[i * d.steps + s] : 0, shown = [...new Set([this.picked, ...(list.length ? list : all.sort((a, b) => hard(a) - hard(b)))])].filter(i => i >= 0), width = this.thumbs.clientWidth || 300, big = this.picked >= 0, room = big ? 4 : this.root.clientWidth < 700 ? 6 : THUMBS;
    this.thumbs.replaceChildren(...shown.slice(0, room + big).map((i, k) => this.thumb(i, d.arrays.answers, (i * d.steps + s) * d.cells, { width: big && !k ? Math.min(250, width * .6) : 96, big: big && !k, before: s ? (i * d.steps + s - 1) * d.cells : null, title: this.nameOf(i), text: [h('b', {}, this.nameOf(i)), d.wrong ? h('span', { class: d.wrong[i * d.steps + s] ? 'trm-bad' : 'trm-good' }, d.wrong[i * d.steps + s] ? `${d.wrong[i * d.steps + s]} wrong` : 'solved') : null].filter(Boolean) })), ...(shown.length > room + big ? [h('span', { class: 'trm-soft' }, `and ${shown.length - room - big} more`)] : []));
  }

  painted() {
    const u = this.at(), [latent, hc, l] = this.data.schedule[u % this.data.U];
    this.where.textContent = `step ${this.step() + 1} · H ${hc + 1} · L ${l + 1} · ${latent}`;
    if (this.wordsFor !== this.step() && !this.playing) { this.wordsFor = this.step(); clearTimeout(this.soon); this.soon = setTimeout(() => this.words(), 80); }
  }

  heading() { return `${this.data.puzzle || 'puzzles'}: ${this.where.textContent}`; }
  state() { return { t: String(this.now), latent: this.latent.value, plane: this.plane.value, hue: this.hue.value, pick: this.picked < 0 ? '' : String(this.picked), sel: [...this.chosen].join('.') }; }
  restore(s) {
    for (const k of ['latent', 'plane', 'hue']) if (s[k] && [...this[k].options].some(o => o.value === s[k])) this[k].value = s[k];
    this.chosen = new Set((s.sel || '').split('.').filter(Boolean).map(Number).filter(i => i < this.data.n)); this.picked = s.pick ? Math.min(this.data.n - 1, +s.pick) : -1;
    this.now = Math.min(this.updates().length - 1, Math.max(0, +s.t || 0)); this.relayout();
  }
}

// ------------------------------------------------------------------ halting

const SIGNALS = [['q_halt', 'q_halt'], ['mean', 'mean confidence'], ['least', 'lowest confidence'], ['still', 'the answer keeps still']];

export class HaltingLab extends Lab {
  constructor(model, root) {
    super(model, root, 'halting');
    this.threshold = 0;
    const number = (name, title, max) => this[name] = h('input', { type: 'number', min: '1', max: String(max), value: '1', title, 'aria-label': title, oninput: () => this.changed() });
    this.signal = options(h('select', { title: 'what decides', onchange: () => { this.fresh(); this.changed(); } }), SIGNALS);
    this.slider = h('input', { type: 'range', min: '0', max: '1000', value: '0', class: 'trm-slider', 'aria-label': 'threshold', oninput: () => { this.set(this.valueOf(+this.slider.value / 1000)); } });
    this.where = h('span', { class: 'trm-where' }); this.tiles = h('div', { class: 'trm-tiles' });
    const over = (x, y, s) => { if (!s) return; let best = null; for (const p of this.curve) if (!best || Math.hypot(s.f.x(p.cost) - x, s.f.y(100 * p.accuracy) - y) < Math.hypot(s.f.x(best.cost) - x, s.f.y(100 * best.accuracy) - y)) best = p; this.set(best.threshold); };
    this.panels = { trade: new Panel('Accuracy against cost', 240, { base: (...x) => this.baseTrade(...x), over: (...x) => this.overTrade(...x), press: over }),
      lines: new Panel('The signal, puzzle by puzzle', 240, { base: (...x) => this.baseLines(...x), over: (...x) => this.overLines(...x), press: (x, y, s) => s && this.set(s.f.value(y)) }),
      stops: new Panel('Stops at step', 160, { wide: true, base: (...x) => this.baseStops(...x), over: (...x) => this.overStops(...x), press: (x, y, s, first) => { if (first) { const step = Math.round(s.f.back(x)); this.only = this.only === step ? 0 : step; this.relayout(); } } }) };
    root.replaceChildren(h('div', { class: 'trm-bar' }, labelled('stop when', this.signal), h('span', { class: 'trm-soft' }, 'is above the threshold'), labelled('not before step', number('least', 'earliest step', 512)), labelled('times in a row', number('often', 'how many steps in a row', 64)), h('span', { class: 'trm-space' }), this.summary, ...(this.live ? [this.cancelButton()] : []), button('Picture', 'save what is seen', () => this.export()), iconButton('theme', 'light or dark', () => this.theme.turn())),
      this.progress, this.note, h('div', { class: 'trm-bar trm-transport' }, labelled('threshold', h('span', {})), this.slider, this.where, button("the model's own", 'q_halt above 0, from the first step on', () => { this.signal.value = 'q_halt'; this.least.value = this.often.value = '1'; this.fresh(); this.set(0); this.changed(); })),
      h('div', { class: 'trm-area' }, this.tiles, h('div', { class: 'trm-panels' }, this.panels.trade.el, this.panels.lines.el, this.panels.stops.el), this.about, this.thumbs));
    this.begin();
  }

  took() {
    const d = this.data;
    d.right = rightAt(d);
    const rows = d.n * d.steps, L = d.cells, sure = d.arrays.confidence, old = this.signals;
    const each = f => Float32Array.from({ length: rows }, (_, k) => f(k));
    this.signals = { q_halt: d.arrays.q_halt };
    if (sure) { this.signals.mean = each(k => { let t = 0; for (let c = 0; c < L; c++) t += sure[k * L + c]; return t / L / 255; }); this.signals.least = each(k => { let t = 255; for (let c = 0; c < L; c++) t = Math.min(t, sure[k * L + c]); return t / 255; }); }
    if (d.arrays.moved) this.signals.still = each(k => -Math.log10(Math.max(d.arrays.moved[k], 1e-6)));
    options(this.signal, SIGNALS.filter(([k]) => this.signals[k]), this.signals[this.signal.value] ? this.signal.value : 'q_halt');
    this.least.max = this.often.max = String(d.steps);
    if (!old) { const own = this.model.get('threshold'); this.fresh(typeof own === 'number' ? own : 0); } else this.sort();
    this.count();
  }

  heard(on) { on('change:threshold', () => { const t = this.model.get('threshold'); if (this.signal.value === 'q_halt' && typeof t === 'number' && t !== this.threshold) { this.threshold = t; this.count(); this.relayout(); } }); }

  sort() { this.values = Float32Array.from(this.signals[this.signal.value]).sort(); }
  /** Another signal: a threshold in its middle, for q_halt the model's own. */
  fresh(threshold) { this.sort(); this.threshold = threshold ?? (this.signal.value === 'q_halt' ? 0 : this.valueOf(.5)); }
  valueOf(share) { const x = share * (this.values.length - 1), i = Math.floor(x), a = this.values[i], b = this.values[Math.min(this.values.length - 1, i + 1)]; return share <= 0 ? a - 1e-3 : a + (b - a) * (x - i); }
  shareOf(value) { let low = 0, high = this.values.length; while (low < high) { const m = (low + high) >> 1; this.values[m] < value ? low = m + 1 : high = m; } return low / Math.max(1, this.values.length - 1); }
  numbers() { return [Math.max(1, Math.min(this.data.steps, +this.least.value || 1)), Math.max(1, Math.min(this.data.steps, +this.often.value || 1))]; }
  count() { const [least, often] = this.numbers(), signal = this.signals[this.signal.value]; this.curve = tradeOff(signal, this.data.right, this.data.steps, least, often); this.follow(); }
  follow() { const [least, often] = this.numbers(), d = this.data; this.stops = stopsAt(this.signals[this.signal.value], d.steps, this.threshold, least, often); this.worth = worth(d.right, d.steps, this.stops); this.now = this.threshold; }
  set(threshold) { this.threshold = threshold; this.follow(); if (this.signal.value === 'q_halt') this.tell('threshold', threshold); this.draw(); clearTimeout(this.soon); this.soon = setTimeout(() => this.words(), 90); }
  setThreshold(t) { this.threshold = t; this.follow(); this.words(); this.paint(); }
  changed() { this.count(); this.relayout(); }
  arrange(w) { this.panels.trade.height = this.panels.lines.height = w >= 1150 ? 280 : 220; }
  shown_(v) { return this.signal.value === 'still' ? `movement ${short(10 ** -v)}` : this.signal.value === 'q_halt' ? signed(v) : short(v); }

  baseTrade(ctx, width, height, theme) {
    const d = this.data, low = Math.min(...this.curve.map(p => p.accuracy)) * 100, all = d.right.reduce((n, r, k) => n + (k % d.steps === d.steps - 1 && r), 0) / d.n * 100, byStep = Array.from({ length: d.steps }, (_, s) => { let n = 0; for (let i = 0; i < d.n; i++) n += d.right[i * d.steps + s]; return 100 * n / d.n; });
    const top = Math.max(all, ...this.curve.map(p => 100 * p.accuracy), ...byStep), bottom = Math.min(low, ...byStep), gap = Math.max(2, (top - bottom) * .06), x = Array.from({ length: d.steps }, (_, s) => s + 1);
    const f = plotCurves(ctx, width, height, theme, { curves: [{ x, y: byStep, colour: theme.soft, width: 1.2, dash: [4, 3] }, { x: this.curve.map(p => p.cost), y: this.curve.map(p => 100 * p.accuracy), colour: theme.cycle[0], width: 2 }], xs: [.5, d.steps + .5], ys: [bottom - gap, top + gap] });
    ctx.font = `10px ${FONT}`; ctx.fillStyle = theme.soft; ctx.textAlign = 'right'; ctx.textBaseline = 'bottom'; ctx.fillText('right, % against mean ACT steps', f.right, f.bottom - 4);
    this.panels.trade.key([['this rule', theme.cycle[0]], ['all stop at one step', theme.soft]]);
    return { f };
  }
  overTrade(ctx, { f }, theme) { const w = this.worth; dot(ctx, f.x(w.cost), f.y(100 * w.accuracy), 6, theme.pick, theme.card); }

  baseLines(ctx, width, height, theme) {
    const d = this.data, signal = this.signals[this.signal.value], x = Array.from({ length: d.steps }, (_, s) => s + 1), ys = padded([this.values[0], this.values.at(-1)], .05);
    const curves = Array.from({ length: Math.min(d.n, 300) }, (_, i) => ({ x, y: [...signal.subarray(i * d.steps, (i + 1) * d.steps)], colour: d.right[(i + 1) * d.steps - 1] ? theme.cycle[0] : theme.cycle[1], width: 1, alpha: i === this.picked ? 1 : this.picked >= 0 ? .06 : d.right[(i + 1) * d.steps - 1] ? .15 : .55 }));
    const f = plotCurves(ctx, width, height, theme, { curves, xs: [.5, d.steps + .5], ys });
    f.value = y => ys[0] + (f.bottom - y) / (f.bottom - f.top) * (ys[1] - ys[0]);
    this.panels.lines.key([['right at the end', theme.cycle[0]], ['wrong', theme.cycle[1]]]);
    return { f };
  }
  overLines(ctx, { f }, theme) {
    const d = this.data, signal = this.signals[this.signal.value], y = f.y(this.threshold);
    for (let i = 0; i < Math.min(d.n, 300); i++) { const s = this.stops[i]; if (this.picked < 0 || i === this.picked) dot(ctx, f.x(s), f.y(signal[i * d.steps + s - 1]), 2.4, d.right[i * d.steps + s - 1] ? theme.cycle[0] : theme.cycle[1]); }
    ctx.strokeStyle = theme.pick; ctx.lineWidth = 2; ctx.beginPath(); ctx.moveTo(f.left, y); ctx.lineTo(f.right, y); ctx.stroke();
    note(ctx, theme, 'drag', f.left + 4, y - 3, theme.pick);
  }

  tally() { const d = this.data, good = new Float32Array(d.steps), bad = new Float32Array(d.steps); this.stops.forEach((s, i) => { (d.right[i * d.steps + s - 1] ? good : bad)[s - 1]++; }); return { good, bad }; }
  baseStops(ctx, width, height, theme) {
    const d = this.data, f = frame(width, height, [.5, d.steps + .5], [0, Math.sqrt(d.n)]);
    axes(ctx, f, whole(1, d.steps, 16).filter(v => v >= 1), [], theme);
    ctx.font = `10px ${FONT}`; ctx.fillStyle = theme.soft; ctx.textAlign = 'right'; ctx.textBaseline = 'top'; ctx.fillText('heights as square roots; click a column to see its puzzles', f.right, f.top - 4);
    this.panels.stops.key([['right there', theme.cycle[0]], ['wrong there', theme.cycle[1]]]);
    return { f };
  }
  overStops(ctx, { f }, theme) {
    const { good, bad } = this.tally();
    good.forEach((n, k) => {
      const all = n + bad[k], top = f.y(Math.sqrt(all)), cut = all ? f.bottom - (f.bottom - top) * bad[k] / all : f.bottom, x = f.x(k + .6), w = f.x(k + 1.4) - x;
      ctx.globalAlpha = this.only && this.only !== k + 1 ? .35 : 1;
      ctx.fillStyle = theme.cycle[0]; ctx.fillRect(x, top, w, cut - top); ctx.fillStyle = theme.cycle[1]; ctx.fillRect(x, cut, w, f.bottom - cut);
      ctx.fillStyle = theme.ink; ctx.font = `10px ${FONT}`; ctx.textAlign = 'center'; ctx.textBaseline = 'bottom'; if (all) ctx.fillText(String(all), x + w / 2, top - 2);
    });
    ctx.globalAlpha = 1;
  }

  painted() {
    const w = this.worth, d = this.data, tile = (value, text, cls = '') => h('div', { class: 'trm-tile' }, h('b', { class: cls }, value), h('span', {}, text));
    this.where.textContent = this.shown_(this.threshold); this.slider.value = String(Math.round(1000 * this.shareOf(this.threshold)));
    this.tiles.replaceChildren(tile(`${(100 * w.accuracy).toFixed(1)}%`, 'right'), tile(w.cost.toFixed(2), 'steps a puzzle'), tile(`${(d.steps / w.cost).toFixed(1)} times`, `fewer than ${d.steps}`), tile(String(w.wrong), 'stopped wrong', w.wrong ? 'trm-bad' : ''), tile(String(w.early), 'of them too early', w.early ? 'trm-bad' : ''), tile(String(w.late), 'right a step before'));
  }
  words() {
    const d = this.data, at = i => i * d.steps + this.stops[i] - 1, list = [...this.stops.keys()].filter(i => this.only ? this.stops[i] === this.only : !d.right[at(i)]), room = this.root.clientWidth < 700 ? 6 : THUMBS, later_ = i => { for (let s = this.stops[i] + 1; s <= d.steps; s++) if (d.right[i * d.steps + s - 1]) return s; return 0; };
    this.summary.textContent = `${d.n} puzzles, ${d.steps} steps`;
    this.about.textContent = this.only ? `${list.length} stop at step ${this.only}` : list.length ? `${list.length} stop with a wrong answer` : 'none stops with a wrong answer';
    this.thumbs.replaceChildren(...[...new Set([this.picked, ...list])].filter(i => i >= 0).slice(0, room).map(i => this.thumb(i, d.arrays.answers, at(i) * d.cells, { width: 104, title: this.nameOf(i), text: [h('b', {}, this.nameOf(i)), h('span', { class: d.right[at(i)] ? 'trm-good' : 'trm-bad' }, d.right[at(i)] ? `right, step ${this.stops[i]}` : later_(i) ? `step ${this.stops[i]}, right at ${later_(i)}` : `step ${this.stops[i]}, never right`)] })), ...(list.length > room ? [h('span', { class: 'trm-soft' }, `and ${list.length - room} more`)] : []));
  }
  heading() { return `${this.signal.selectedOptions[0].text} above ${this.where.textContent}`; }
  state() { return { t: String(this.threshold), signal: this.signal.value, least: this.least.value, often: this.often.value, only: this.only ? String(this.only) : '' }; }
  restore(s) { if (this.signals[s.signal]) this.signal.value = s.signal; this.least.value = s.least || '1'; this.often.value = s.often || '1'; this.only = +s.only || 0; this.fresh(s.t === undefined ? undefined : +s.t); this.changed(); }
}

// ------------------------------------------------------------------ ablations

export class AblationBench extends Lab {
  constructor(model, root) {
    super(model, root, 'bench');
    this.chosen = 0; this.form = h('form', { class: 'trm-drawer', hidden: true, onsubmit: e => { e.preventDefault(); this.run(); } });
    this.panels = { bars: new Panel('What breaks?', 200, { base: (...x) => this.baseBars(...x), over: () => {}, press: (x, y, s, first) => { const row = Math.floor((y - s.top) / s.each); if (first && row >= 0 && row < this.data.conditions.length) { this.chosen = row; this.relayout(); } } }),
      curves: new Panel('Puzzles right, % by ACT step', 240, { base: (...x) => this.baseCurves(...x), over: () => {} }) };
    root.replaceChildren(h('div', { class: 'trm-bar' }, ...(this.live ? [this.formButton = button('Another run', 'take something away', () => { this.form.hidden = !this.form.hidden; this.formButton.classList.toggle('trm-on', !this.form.hidden); }, 'trm-toggle'), this.cancelButton()] : []), h('span', { class: 'trm-space' }), this.summary, button('Picture', 'save what is seen', () => this.export()), iconButton('theme', 'light or dark', () => this.theme.turn())),
      this.form, this.progress, this.note, h('div', { class: 'trm-area' }, h('div', { class: 'trm-panels' }, this.panels.bars.el, this.panels.curves.el), this.about, this.thumbs));
    this.begin();
  }

  heard(on) { on('change:fields', () => this.makeForm()); this.makeForm(); }

  makeForm() {
    const fields = this.model.get('fields') || [], field = f => f.options ? options(h('select', { name: f.name, title: f.help }), f.options.map(v => [v, v || f.none || 'none'])) : h('input', { type: f.type || 'number', name: f.name, min: String(f.min ?? 0), max: String(f.max ?? 512), step: String(f.step ?? 1), placeholder: String(f.value ?? ''), title: f.help });
    this.form.replaceChildren(...fields.map(f => labelled(f.label, field(f))), h('button', { type: 'submit', class: 'trm-main' }, 'Run'));
  }
  run() {
    const condition = {};
    for (const el of this.form.querySelectorAll('input, select')) if (el.type === 'checkbox' ? el.checked : el.value !== '') condition[el.name] = el.type === 'checkbox' ? true : el.type === 'number' ? +el.value : el.value;
    this.model.send({ type: 'run', condition });
  }

  took() {
    const d = this.data, [C, n, S] = d.arrays.wrong.shape;
    Object.assign(d, { C, n, steps: S, cells: d.arrays.inputs.shape[1] });
    this.chosen = Math.min(this.chosen, C - 1);
    d.share = (c, s) => { let k = 0; for (let i = 0; i < n; i++) k += d.arrays.wrong[(c * n + i) * S + s] === 0; return k / n; };
    d.last = c => Math.min(S, d.lengths[c]) - 1;
    d.cellShare = c => { let k = 0, all = 0; for (let i = 0; i < n; i++) { k += d.arrays.wrong[(c * n + i) * S + d.last(c)]; for (let q = 0; q < d.cells; q++) all += d.arrays.solution[i * d.cells + q] !== 0; } return 1 - k / Math.max(1, all); };
    d.isRight = (c, i) => d.arrays.wrong[(c * n + i) * S + d.last(c)] === 0;
  }

  colour(c, theme) { return theme.cycle[c % 7]; }
  arrange(w) { this.panels.bars.height = 22 + 24 * this.data.conditions.length; this.panels.curves.height = Math.max(200, Math.min(330, this.panels.bars.height)); }

  baseBars(ctx, width, height, theme) {
    const d = this.data, each = 24, top = 2, left = Math.min(170, width * .42), right = width - 44, x = v => left + v * (right - left);
    ctx.font = `12px ${FONT}`; ctx.textBaseline = 'middle';
    d.conditions.forEach((name, c) => {
      const y = top + c * each, r = d.share(c, d.last(c)), on = c === this.chosen;
      if (on) { ctx.fillStyle = theme.faint; ctx.fillRect(2, y, width - 4, each - 1); }
      ctx.fillStyle = on ? theme.pick : theme.ink; ctx.textAlign = 'right'; ctx.fillText(fitted(ctx, name, left - 12), left - 8, y + each / 2);
      ctx.fillStyle = this.colour(c, theme); ctx.globalAlpha = .28; ctx.fillRect(left, y + 4, x(d.cellShare(c)) - left, each - 9); ctx.globalAlpha = 1; ctx.fillRect(left, y + 4, x(r) - left, each - 9);
      ctx.fillStyle = theme.soft; ctx.textAlign = 'left'; ctx.fillText(`${Math.round(100 * r)}%`, right + 6, y + each / 2);
    });
    ctx.font = `10px ${FONT}`; ctx.fillStyle = theme.soft; ctx.textAlign = 'right'; ctx.fillText('puzzles right at the end; cells pale; click one', right, height - 10);
    return { each, top };
  }

  baseCurves(ctx, width, height, theme) {
    const d = this.data, curves = d.conditions.map((_, c) => ({ c, x: Array.from({ length: d.last(c) + 1 }, (_, s) => s + 1), y: Array.from({ length: d.last(c) + 1 }, (_, s) => 100 * d.share(c, s)), colour: this.colour(c, theme), width: c === this.chosen ? 3 : 1.3, alpha: c === this.chosen ? 1 : .45, dash: c >= 7 ? [5, 3] : [] }));
    curves.sort((a, b) => (a.c === this.chosen) - (b.c === this.chosen));
    const f = plotCurves(ctx, width, height, theme, { curves, xs: [.5, d.steps + .5], ys: [-4, 104], yTicks: [0, 25, 50, 75, 100] });
    this.panels.curves.key([[d.conditions[this.chosen], this.colour(this.chosen, theme)]]);
    return { f };
  }

  words() {
    const d = this.data, c = this.chosen, L = d.cells, broke = [], mended = [], from = (k, i) => (k * d.n + i) * L, room = this.root.clientWidth < 700 ? 6 : THUMBS;
    for (let i = 0; i < d.n; i++) if (d.isRight(0, i) !== d.isRight(c, i)) (d.isRight(0, i) ? broke : mended).push(i);
    this.summary.textContent = `${d.n} puzzles`;
    const caption = (k, i) => { const n = d.arrays.wrong[(k * d.n + i) * d.steps + d.last(k)]; return h('span', { class: n ? 'trm-bad' : 'trm-good' }, n ? `${n} wrong` : 'solved'); };
    if (this.picked >= 0) {
      this.about.replaceChildren(h('b', {}, `${this.nameOf(this.picked)}, every run`), button('back', 'to all puzzles', () => { this.picked = -1; this.relayout(); }));
      return this.thumbs.replaceChildren(...d.conditions.map((name, k) => this.thumb(this.picked, d.arrays.answers, from(k, this.picked), { width: 112, title: name, text: [h('b', {}, name), caption(k, this.picked)] })));
    }
    this.about.replaceChildren(h('b', {}, d.conditions[c]), h('span', { class: 'trm-soft' }, c === 0 ? `${d.n - broke.length} puzzles; click one to see it in every run` : `breaks ${broke.length} of ${Array.from({ length: d.n }, (_, i) => i).filter(i => d.isRight(0, i)).length} that were right${mended.length ? `, mends ${mended.length}` : ''}; click a puzzle to see it in every run`));
    const order = [...broke, ...mended, ...Array.from({ length: d.n }, (_, i) => i).filter(i => !broke.includes(i) && !mended.includes(i))];
    this.thumbs.replaceChildren(...order.slice(0, room).map(i => this.thumb(i, d.arrays.answers, from(c, i), { width: 104, title: this.nameOf(i), text: [h('b', {}, this.nameOf(i)), caption(c, i)] })), ...(order.length > room ? [h('span', { class: 'trm-soft' }, `and ${order.length - room} more`)] : []));
  }
  heading() { return 'What breaks?'; }
  state() { return { run: String(this.chosen), pick: this.picked < 0 ? '' : String(this.picked) }; }
  restore(s) { this.chosen = Math.min(this.data.C - 1, +s.run || 0); this.picked = s.pick ? Math.min(this.data.n - 1, +s.pick) : -1; this.relayout(); }
}

/** Text cut to a width. */
function fitted(ctx, text, width) { if (ctx.measureText(text).width <= width) return text; let n = text.length; while (n > 1 && ctx.measureText(text.slice(0, n) + '…').width > width) n--; return text.slice(0, n) + '…'; }

// ------------------------------------------------------------------ entrance

const KINDS = { explorer: Explorer, monitor: Monitor, map: LatentMap, halting: HaltingLab, ablations: AblationBench };

/** What is looked at, kept in the address: a page without a kernel can be shared as it is seen. */
function keepInAddress(widget) {
  if (window.parent !== window || !/^(file|https?):/.test(location.protocol)) return;
  const read = () => Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  let wrote = '';
  const ready = () => (widget.sides ? widget.sides.a : widget.data) ? begin() : setTimeout(ready, 30);
  const begin = () => {
    if (location.hash.length > 1) widget.restore(read());
    widget.noted = () => { clearTimeout(widget.noting); widget.noting = setTimeout(() => { const text = '#' + new URLSearchParams(Object.entries(widget.state()).filter(([, v]) => v !== '' && v !== undefined)); if (text !== location.hash) { wrote = text; history.replaceState(null, '', text); } }, 200); };
    window.addEventListener('hashchange', () => { if (location.hash !== wrote) widget.restore(read()); });
  };
  ready();
}

function render({ model, el }) {
  const root = h('div', { class: 'trm' });
  el.append(root);
  const widget = new KINDS[model.get('kind')](model, root);
  if (model.page) keepInAddress(widget);
  return () => widget.close();
}

/** A model for pages without a kernel: packs in base64, by puzzle; or one pack of many puzzles. */
export function pageModel(data) {
  const bytes = text => Uint8Array.from(atob(text || ''), c => c.charCodeAt(0)), heard = {}, packs = data.packs || [['', '']];
  const values = { kind: data.kind || 'explorer', live: false, status: {}, board: data.board, pack_a: bytes(packs[0][0]), pack_b: bytes(packs[0][1]), pack: bytes(data.pack) };
  const set = (name, value) => { values[name] = value; for (const f of heard['change:' + name] || []) f(); };
  return { page: true, get: name => values[name], on: (name, f) => { (heard[name] ||= []).push(f); }, off: () => {}, send: () => {}, choose: i => { set('pack_a', bytes(packs[i][0])); set('pack_b', bytes(packs[i][1])); } };
}

export default { render };
