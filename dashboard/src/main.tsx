import '@fontsource-variable/inter/wght.css';
import './styles.css';
import { Route, Router } from '@solidjs/router';
import { lazy } from 'solid-js';
import { render } from 'solid-js/web';
import { Frame } from './parts/frame';
import { NotFound } from './parts/states';

const root = document.getElementById('app');
if (root) {
  render(
    () => (
      <Router base="/ui" root={Frame}>
        <Route path="/" component={lazy(() => import('./pages/experiments'))} />
        <Route path="/experiments/:id" component={lazy(() => import('./pages/experiment'))} />
        <Route path="/runs/:id" component={lazy(() => import('./pages/run'))} />
        <Route path="/compare" component={lazy(() => import('./pages/compare'))} />
        <Route path="/models" component={lazy(() => import('./pages/models'))} />
        <Route path="/models/:name" component={lazy(() => import('./pages/model'))} />
        <Route path="*" component={NotFound} />
      </Router>
    ),
    root,
  );
}
