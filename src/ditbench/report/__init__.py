"""What people see of the results: tables, figures, the page, and MLflow. All of it is read from records alone."""
