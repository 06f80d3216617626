import solid from 'vite-plugin-solid';
import { defineConfig } from 'vitest/config';

const target = 'http://127.0.0.1:5000';

export default defineConfig({
  base: '/ui/',
  plugins: [solid()],
  build: {
    target: 'es2022',
    // `dist/.gitignore` keeps the folder that cargo watches; `npm run build` removes what is old by itself.
    emptyOutDir: false,
    // A small file inlined as `data:` would need a wider Content-Security-Policy.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    reportCompressedSize: false,
  },
  // `npm run dev` beside a `highroad track` on its usual port, which refuses writes of another origin.
  server: {
    proxy: Object.fromEntries(
      ['/ui/api', '/api'].map((path) => [path, { target, changeOrigin: true, headers: { origin: target } }]),
    ),
  },
  test: { include: ['src/**/*.test.ts'], environment: 'node' },
});
