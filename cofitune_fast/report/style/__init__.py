"""Style shared by all pages: colours, canvas, number formats and page frame."""
