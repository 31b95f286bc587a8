"""What is to be solved: task directories, tasksets, and datasets of tasks."""
