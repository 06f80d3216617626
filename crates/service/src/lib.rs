//! What every Highroad server process shares: errors, telemetry, the HTTP shell.
