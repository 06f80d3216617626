import '@fontsource-variable/inter/wght.css';
import './styles.css';
import './serving.css';
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
        <Route path="/portfolio" component={lazy(() => import('./pages/portfolio'))} />
        <Route path="/rollouts" component={lazy(() => import('./pages/rollouts'))} />
        <Route path="/rollouts/:model/:id" component={lazy(() => import('./pages/rollout'))} />
        <Route path="/budgets" component={lazy(() => import('./pages/budgets'))} />
        <Route path="/monitor" component={lazy(() => import('./pages/monitor'))} />
        <Route path="/monitor/:member" component={lazy(() => import('./pages/monitored'))} />
        <Route path="/requests" component={lazy(() => import('./pages/requests'))} />
        <Route path="*" component={NotFound} />
      </Router>
    ),
    root,
  );
}
