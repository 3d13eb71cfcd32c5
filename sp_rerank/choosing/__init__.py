"""What a person prefers among images: answers and marks, what they say of each image, which question comes next."""
