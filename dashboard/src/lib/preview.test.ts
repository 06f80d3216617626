import { expect, test } from 'vitest';
import { asText, imageType, indented, kindOf } from './preview';

test('a name tells how a file is looked at', () => {
  const kinds = ['a.JSON', 'b.png', 'MLmodel', 'c.csv', 'README.md', 'model.pt2', 'x.tar.gz', 'noending'].map(kindOf);
  expect(kinds).toEqual(['json', 'image', 'text', 'table', 'markdown', 'other', 'other', 'other']);
  expect(['a.jpg', 'b.svg', 'c.webp'].map(imageType)).toEqual(['image/jpeg', 'image/svg+xml', 'image/webp']);
});

test('what is no text is not shown as one, and a cut character is left out', () => {
  const bytes = new TextEncoder().encode('é');
  expect(asText(bytes, true)).toBe('é');
  expect(asText(bytes.subarray(0, 1), false)).toBe('');
  expect(asText(bytes.subarray(0, 1), true)).toBeUndefined();
  expect(asText(new Uint8Array([80, 75, 0, 1]), true)).toBeUndefined();
});

test('JSON gets line breaks and what is none stays as it is', () => {
  expect(indented('{"a":[1]}')).toBe('{\n  "a": [\n    1\n  ]\n}');
  expect(indented('{"a":')).toBe('{"a":');
});
