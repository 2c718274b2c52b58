"""Who watches: records on disk, the console, and the trackers that accelerate knows."""
