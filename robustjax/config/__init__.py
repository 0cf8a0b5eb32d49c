"""From blocks of a config to objects, in parts; `robustjax.config` is the entrance."""
