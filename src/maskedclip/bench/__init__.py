"""What this machine can do with this software: loader, step, loss, embedding; and what a run will need."""
