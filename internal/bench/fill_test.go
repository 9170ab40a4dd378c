package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/cavaliergopher/cpio"
)

// TestFillImage: the second archive begins at a multiple of 4, or the kernel doesn't see it, and has no page that is zero.
func TestFillImage(t *testing.T) {
	dir := t.TempDir()
	image, filled := filepath.Join(dir, "image"), filepath.Join(dir, "filled")
	if err := os.WriteFile(image, []byte("seven b"), 0o600); err != nil {
		t.Fatal(err)
	}
	const size = 1<<20 + 5
	if err := fillImage(image, filled, size); err != nil {
		t.Fatal(err)
	}
	all, err := os.ReadFile(filled)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(all, []byte("seven b\x00")) {
		t.Fatalf("begins with %q", all[:16])
	}
	archive := cpio.NewReader(bytes.NewReader(all[8:]))
	if h, err := archive.Next(); err != nil || h.Name != "fill" || h.Size != size {
		t.Fatalf("first file: %+v, %v", h, err)
	}
	data, err := io.ReadAll(archive)
	if err != nil || len(data) != size {
		t.Fatalf("%d bytes, %v", len(data), err)
	}
	for page := 0; page+4096 <= len(data); page += 4096 {
		if bytes.Count(data[page:page+4096], []byte{0}) > 100 {
			t.Fatalf("page at %d is all but empty", page)
		}
	}
	if _, err := archive.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("after the file: %v, want the end", err)
	}
}
