"""Why a training works: the paper's measures, as pure functions beside their equations."""
