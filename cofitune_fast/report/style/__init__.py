"""What all pages share: colours, canvas, numbers and page frame."""
