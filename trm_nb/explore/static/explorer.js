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
  cycle: ['#0b62b0', '#d55e00', '#009e73', '#9b6fb0', '#c99700', '#56b4e9', '#1f2328'], amount: ['#ffffff', '#d9c6e3', '#9b6fb0', '#3d2a4d'], contrast: ['#0b62b0', '#bcd9ee', '#ffffff', '#f5c9ab', '#b8440b'] };
const DARK = { ink: '#e6edf3', soft: '#9aa4af', line: '#3d444d', faint: '#252b33', paper: '#12161c', card: '#181d24', given: '#2a313a', answer: '#7cc0ff', changed: '#15395a', wrong: '#ffa06a', mistaken: '#57301a', unsure: '#a678bd', pick: '#ff9233',
  cycle: ['#6cb6ff', '#ff9a4d', '#3fcf9f', '#c79be0', '#e3b341', '#a5d8ff', '#e6edf3'], amount: ['#12161c', '#3d2a4d', '#9b6fb0', '#ecdcf5'], contrast: ['#6cb6ff', '#1d4063', '#12161c', '#6b3714', '#ff9a4d'] };

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

/** A titled canvas: `base` is drawn when data, size or colours change, `over` at every frame. */
class Panel {
  constructor(title, height, { base, over, press, tools = [], wide = false }) {
    Object.assign(this, { height, base, over, press, still: document.createElement('canvas'), canvas: h('canvas', {}) });
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
    this.asked = new Map(); this.influences = new Map(); this.serial = 0; this.loads = { a: 0, b: 0 }; this.hidden = false; this.shown = -1;
    this.build();
    this.theme = new Theme(root, () => this.relayout());
    this.listen();
    this.takeBoard(); this.takeStatus();
    for (const side of SIDES) this.load(side);
  }

  // ---- page

  build() {
    const grab = (name, value) => { this[name] = value; return value; };
    const pick = (name, entries, onchange, title) => grab(name, options(h('select', { title, onchange }), entries));
    this.root.classList.add('trm'); this.root.tabIndex = 0; this.root.dataset.lmSuppressShortcuts = 'true'; this.root.explorer = this; ownKeys(this.root);
    const menu = grab('menu', h('div', { class: 'trm-menu', hidden: true }, ...[['png', 'Picture (PNG)'], ['gif', 'Movie (GIF)'], ['npz', 'Trace (npz)'], ['html', 'Page that plays (HTML)']].filter(([k]) => this.live || k === 'png').map(([k, text]) => h('button', { type: 'button', 'data-export': k, onclick: () => { menu.hidden = true; this.export(k); } }, text))));
    const head = h('div', { class: 'trm-bar' },
      pick('models', [], () => this.chooseModel(), 'model'), 
      h('span', { class: 'trm-group' }, iconButton('back', 'puzzle before', () => this.choose(-1)), pick('puzzles', [], () => this.choose(0), 'puzzle'), iconButton('next', 'next puzzle', () => this.choose(1))),
      ...(this.live ? [grab('editButton', button('Edit', 'change cells of the puzzle', () => this.edit(this.draft === null), 'trm-toggle')), grab('pasteButton', button('Paste', 'type or paste a puzzle, or read one from a file', () => this.toggle('paste'), 'trm-toggle')),
        grab('solveButton', button('Solve', 'solve the puzzle', () => this.busy ? this.model.send({ type: 'cancel' }) : this.solve(), 'trm-main'))] : []),
      h('span', { class: 'trm-space' }),
      ...(this.live ? [grab('settingsButton', button('Settings', 'steps, cycles, noise, seed', () => this.toggle('settings'), 'trm-toggle')), grab('compareButton', button('Compare', 'two checkpoints or two settings side by side', () => this.compare(!this.comparing), 'trm-toggle'))] : []),
      h('span', { class: 'trm-hold' }, button('Export', 'save what is seen', () => { menu.hidden = !menu.hidden; }), menu),
      iconButton('theme', 'light or dark', () => this.theme.turn()));
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
      maps: new Panel('Latents, cell by cell', 190, { wide: true, tools: [this.mapped], base: (...x) => this.baseMaps(...x), over: (...x) => this.overMaps(...x), press: (x, y, s, first) => this.pressMaps(x, y, s, first) }),
      move: new Panel('Movement (rms)', 150, { base: (...x) => this.baseMove(...x), over, press: time }),
      path: new Panel('Path', 150, { base: (...x) => this.basePath(...x), over: (...x) => this.overPath(...x) }),
      heat: new Panel('Every cell, every update', 190, { wide: true, tools: [this.heat], base: (...x) => this.baseHeat(...x), over: (...x) => this.overHeat(...x), press: (x, y, s, first) => this.pressHeat(x, y, s, first) }),
      cell: new Panel('A cell', 120, { wide: true, base: (...x) => this.baseCell(...x), over: (ctx, s, theme) => { if (s.f) over(ctx, s, theme); }, press: time }),
    };
    return h('div', { class: 'trm-panels' }, ...Object.values(this.panels).map(p => p.el));
  }

  listen() {
    const m = this.model, on = (name, f) => { m.on(name, f); (this.offs ||= []).push(() => m.off(name, f)); };
    for (const side of SIDES) on('change:pack_' + side, () => this.load(side));
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
      if (this.cell >= trace.cells) this.cell = -1;
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

  takeStatus() {
    const s = this.model.get('status') || {};
    this.busy = !!s.busy;
    this.progress.firstChild.style.width = (s.busy ? 100 * (s.done || 0) : 0) + '%';
    this.progress.classList.toggle('trm-busy', this.busy);
    if (this.solveButton) { this.solveButton.textContent = this.busy ? 'Cancel' : 'Solve'; this.solveButton.classList.toggle('trm-cancel', this.busy); }
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

  edit(on) {
    if (!this.live) return;
    this.pause();
    this.draft = on ? Uint8Array.from(this.info.tokens || this.sides.a?.arrays.inputs || []) : null;
    this.drafted = this.info.serial; this.pen = null;
    this.editButton?.classList.toggle('trm-on', on);
    this.root.classList.toggle('trm-editing', on);
    this.swatches.hidden = !on;
    if (on && this.cell < 0) this.cell = 0;
    this.relayout();
  }

  makeSwatches() {
    const look = this.look();
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
    ctx.font = `10px ${FONT}`; ctx.fillStyle = theme.soft; ctx.textAlign = 'right'; ctx.textBaseline = 'bottom'; ctx.fillText('stops above', f.right, f.y(0) - 3);
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

  /** Places of the maps of all latents. */
  baseMaps(ctx, width, height, theme) {
    const shown = this.both().filter(([, t]) => t.inner && t.arrays.cell_path).flatMap(([side, trace]) => trace.latents.map(latent => ({ side, trace, latent })));
    if (!shown.length) return null;
    const [rows, cols] = this.sides.a.look.shape, each = width / shown.length, s = Math.min((each - 20) / cols, (height - 30) / rows);
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
    if (message.ok) save(`${name}.${what}`, new Blob([buffers[0]], { type: { gif: 'image/gif', html: 'text/html', npz: 'application/octet-stream' }[what] }));
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
    this.title = h('strong', {}); this.state = h('span', { class: 'trm-soft' });
    this.stopButton = button('Stop watching', 'stop reading the file', () => this.model.send({ type: 'stop' }));
    this.panels = [...CHARTS.map(([title, keys, scale]) => this.chart(title, keys, scale)), this.chart('', null, 1, [this.extra])];
    root.replaceChildren(h('div', { class: 'trm-bar' }, this.title, this.state, h('span', { class: 'trm-space' }), this.stopButton, iconButton('theme', 'light or dark', () => this.theme.turn())),
      h('div', { class: 'trm-bar trm-transport' }, labelled('smoothing', this.span), this.spanText, labelled('log loss', this.log)), h('div', { class: 'trm-panels' }, ...this.panels.map(p => p.el)));
    this.theme = new Theme(root, () => this.relayout());
    const on = (name, f) => { model.on(name, f); (this.offs ||= []).push(() => model.off(name, f)); };
    on('change:rows', () => this.load()); on('change:status', () => this.say());
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
    const data = this.model.get('rows');
    if (!data?.byteLength) return;
    this.data = readRows(unpack(await inflate(data)));
    const shown = CHARTS.flatMap(c => c[1]), keys = [...new Set([...Object.keys(this.data.train), ...Object.keys(this.data.eval)])].filter(k => !shown.includes(k));
    options(this.extra, keys.map(k => [k, k]), keys.includes(this.extra.value) ? this.extra.value : keys.includes('lr') ? 'lr' : keys[0]);
    this.relayout();
  }

  say() { const s = this.model.get('status') || {}; this.title.textContent = s.name || ''; this.state.textContent = s.text || ''; this.state.className = s.level === 'error' ? 'trm-bad' : 'trm-soft'; this.stopButton.hidden = !s.watching; }

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
  paint() { for (const p of this.panels) p.frame(this.theme.colours); }
  close() { this.theme.close(); this.resized.disconnect(); this.offs.forEach(f => f()); }
}

// ------------------------------------------------------------------ entrance

const KINDS = { explorer: Explorer, monitor: Monitor };

function render({ model, el }) {
  const root = h('div', { class: 'trm' });
  el.append(root);
  const widget = new KINDS[model.get('kind')](model, root);
  return () => widget.close();
}

/** A model for pages without a kernel: packs in base64, by puzzle. */
export function pageModel(data) {
  const bytes = text => Uint8Array.from(atob(text || ''), c => c.charCodeAt(0)), heard = {}, values = { kind: 'explorer', live: false, status: {}, board: data.board, pack_a: bytes(data.packs[0][0]), pack_b: bytes(data.packs[0][1]) };
  const set = (name, value) => { values[name] = value; for (const f of heard['change:' + name] || []) f(); };
  return { get: name => values[name], on: (name, f) => { (heard[name] ||= []).push(f); }, off: () => {}, send: () => {}, choose: i => { set('pack_a', bytes(data.packs[i][0])); set('pack_b', bytes(data.packs[i][1])); } };
}

export default { render };
