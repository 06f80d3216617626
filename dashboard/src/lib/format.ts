// Texts for people. Numbers are short and honest: four significant digits, never a rounded-away sign or exponent.

export function number(value: number | string | null | undefined): string {
  if (value === null || value === undefined) return '–';
  if (typeof value === 'string') return value;
  if (Number.isNaN(value)) return 'NaN';
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e9) return `${value}`;
  if (size >= 1e-3 && size < 1e6) {
    const digits = Math.min(6, Math.max(0, 3 - Math.floor(Math.log10(size))));
    const text = value.toFixed(digits);
    return text.includes('.') ? text.replace(/0+$/, '').replace(/\.$/, '') : text;
  }
  return value
    .toExponential(3)
    .replace(/\.?0+e/, 'e')
    .replace('e+', 'e');
}

/** `1_234_567` as `1.23M`, for axes and counts. */
export function compact(value: number): string {
  const size = Math.abs(value);
  for (const [limit, unit] of [
    [1e12, 'T'],
    [1e9, 'G'],
    [1e6, 'M'],
    [1e3, 'k'],
  ] as const) {
    if (size >= limit) return `${Number((value / limit).toPrecision(3))}${unit}`;
  }
  return `${Number(value.toPrecision(4))}`;
}

export function duration(millis: number | null | undefined): string {
  if (millis === null || millis === undefined) return '–';
  if (millis < 0) return `-${duration(-millis)}`;
  if (millis < 1000) return `${Math.round(millis)} ms`;
  const seconds = millis / 1000;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const pad = (n: number) => String(Math.floor(n)).padStart(2, '0');
  if (seconds < 3600) return `${Math.floor(seconds / 60)}m ${pad(seconds % 60)}s`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)}h ${pad((seconds % 3600) / 60)}m`;
  return `${Math.floor(seconds / 86_400)}d ${pad((seconds % 86_400) / 3600)}h`;
}

export function size(bytes: number): string {
  if (bytes < 1000) return `${bytes} B`;
  if (bytes < 1e6) return `${(bytes / 1e3).toFixed(1)} kB`;
  if (bytes < 1e9) return `${(bytes / 1e6).toFixed(1)} MB`;
  return `${(bytes / 1e9).toFixed(1)} GB`;
}

/** `2026-11-23 09:07:45`, in the reader's time zone. */
export function when(millis: number | null | undefined): string {
  if (millis === null || millis === undefined) return '–';
  const at = new Date(millis);
  if (Number.isNaN(at.getTime())) return '–';
  const pad = (n: number) => String(n).padStart(2, '0');
  const day = `${at.getFullYear()}-${pad(at.getMonth() + 1)}-${pad(at.getDate())}`;
  return `${day} ${pad(at.getHours())}:${pad(at.getMinutes())}:${pad(at.getSeconds())}`;
}

/** `3 min ago`; the date itself after a month. */
export function ago(millis: number | null | undefined, now: number): string {
  if (millis === null || millis === undefined) return '–';
  const seconds = (now - millis) / 1000;
  if (seconds < 0) return when(millis);
  if (seconds < 10) return 'just now';
  if (seconds < 60) return `${Math.floor(seconds)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ago`;
  if (seconds < 30 * 86_400) return `${Math.floor(seconds / 86_400)} d ago`;
  return when(millis).slice(0, 10);
}

export function shortDigest(digest: string): string {
  return digest.replace(/^sha256:/, '').slice(0, 12);
}

/** A text with its long digests cut as `shortDigest` cuts one. */
export function shortDigests(text: string): string {
  return text.replace(/sha256:([0-9a-f]{12})[0-9a-f]{52}/g, 'sha256:$1');
}

/** The parts of a text of the server, of which every other one stood in backticks; a text with one that ends nowhere is one part. */
export function codeParts(text: string): string[] {
  const parts = text.split('`');
  return parts.length % 2 === 1 ? parts : [text];
}

export function plural(n: number, one: string): string {
  return `${n.toLocaleString('en')} ${one}${n === 1 ? '' : 's'}`;
}
