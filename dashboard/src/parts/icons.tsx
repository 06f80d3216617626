import type { JSX } from 'solid-js';

const paths = {
  sun: 'M8 5.2a2.8 2.8 0 1 0 0 5.6 2.8 2.8 0 0 0 0-5.6ZM8 1v1.6M8 13.4V15M1 8h1.6M13.4 8H15M3.05 3.05l1.1 1.1M11.85 11.85l1.1 1.1M12.95 3.05l-1.1 1.1M4.15 11.85l-1.1 1.1',
  moon: 'M13.6 9.7A6 6 0 0 1 6.3 2.4a6 6 0 1 0 7.3 7.3Z',
  help: 'M5.9 6a2.1 2.1 0 1 1 3.2 1.8c-.7.4-1.1.8-1.1 1.6M8 11.9v.1M8 1.5a6.5 6.5 0 1 0 0 13 6.5 6.5 0 0 0 0-13Z',
  columns: 'M2.5 3h11v10h-11ZM6.2 3v10M9.8 3v10',
  up: 'M8 12.5v-9M4.2 7.2 8 3.4l3.8 3.8',
  down: 'M8 3.5v9M4.2 8.8 8 12.6l3.8-3.8',
  close: 'M4 4l8 8M12 4l-8 8',
  expand: 'M9.5 2.5h4v4M13.5 2.5l-4.5 4.5M6.5 13.5h-4v-4M2.5 13.5 7 9',
  reset: 'M3 8a5 5 0 1 1 1.6 3.7M3 8V4.6M3 8h3.4',
  download: 'M8 2.5v7.3M4.8 7 8 10.2 11.2 7M3 13.2h10',
  folder:
    'M1.8 4.2c0-.7.5-1.2 1.2-1.2h2.8l1.4 1.6H13c.7 0 1.2.5 1.2 1.2v5.8c0 .7-.5 1.2-1.2 1.2H3c-.7 0-1.2-.5-1.2-1.2Z',
  file: 'M4 1.8h5l3 3v9.4H4ZM9 1.8v3h3',
  chevron: 'M6 3.8 10.2 8 6 12.2',
} as const;

export function Icon(props: { name: keyof typeof paths }): JSX.Element {
  return (
    <svg class="icon" viewBox="0 0 16 16" aria-hidden="true">
      <path d={paths[props.name]} />
    </svg>
  );
}
