"""The parts of the page that settings name."""


class Radio: ...


class Slider: ...
