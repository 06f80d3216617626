// How a file can be looked at, told by its name; and reading no more of it than can be looked at.

export type Kind = 'text' | 'json' | 'image' | 'table' | 'markdown' | 'other';

const ENDINGS: Record<Exclude<Kind, 'other'>, string[]> = {
  text: [
    'txt',
    'log',
    'py',
    'toml',
    'yaml',
    'yml',
    'ini',
    'cfg',
    'sh',
    'rs',
    'ts',
    'js',
    'css',
    'html',
    'xml',
    'sql',
    'jsonl',
    'diff',
    'patch',
    'env',
    'mlmodel',
    'lock',
  ],
  json: ['json', 'geojson', 'ipynb'],
  image: ['png', 'jpg', 'jpeg', 'gif', 'webp', 'avif', 'bmp', 'svg'],
  table: ['csv', 'tsv'],
  markdown: ['md', 'markdown'],
};
const IMAGE_TYPES: Record<string, string> = { jpg: 'image/jpeg', svg: 'image/svg+xml' };
const TEXT_NAMES = ['makefile', 'dockerfile', 'license', 'mlmodel', 'readme', '.gitignore'];

/** Bytes of a text that are shown, and of an image that is fetched. */
export const MAX_TEXT_BYTES = 512 * 1024;
export const MAX_IMAGE_BYTES = 25_000_000;
export const MAX_TABLE_ROWS = 500;

function ending(name: string): string {
  return name.includes('.') ? name.slice(name.lastIndexOf('.') + 1).toLowerCase() : '';
}

export function kindOf(name: string): Kind {
  const end = ending(name);
  for (const [kind, endings] of Object.entries(ENDINGS)) if (endings.includes(end)) return kind as Kind;
  return TEXT_NAMES.includes(name.toLowerCase()) ? 'text' : 'other';
}

export function imageType(name: string): string {
  const end = ending(name);
  return IMAGE_TYPES[end] ?? `image/${end}`;
}

/** The first `most` bytes, and whether that is all. The rest is not transferred. */
export async function readStart(
  href: string,
  most: number,
  signal: AbortSignal,
): Promise<{ bytes: Uint8Array; whole: boolean }> {
  const response = await fetch(href, { signal });
  if (!response.ok || !response.body)
    throw new Error(`The file could not be read: the server answered ${response.status}.`);
  const reader = response.body.getReader();
  const parts: Uint8Array[] = [];
  let length = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return { bytes: joined(parts, length), whole: true };
    parts.push(value);
    length += value.length;
    if (length > most) {
      await reader.cancel();
      return { bytes: joined(parts, length).subarray(0, most), whole: false };
    }
  }
}

function joined(parts: Uint8Array[], length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

/** Text; `undefined` if these bytes are none. A character cut off at the end is left out. */
export function asText(bytes: Uint8Array, whole: boolean): string | undefined {
  if (bytes.subarray(0, 8000).includes(0)) return undefined;
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes, { stream: !whole });
  } catch {
    return undefined;
  }
}

/** JSON with line breaks; the text itself where it is none, or not all of it is here. */
export function indented(text: string): string {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
