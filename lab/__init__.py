"""The lab: samplers side by side, and what their schedules look like. It never imports a host."""
