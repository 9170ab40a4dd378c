package colo

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCopiesFit: what files take is what is allocated, by the folder that they come to; holes take nothing.
func TestCopiesFit(t *testing.T) {
	dir := t.TempDir()
	full, sparse := filepath.Join(dir, "full"), filepath.Join(dir, "sparse")
	if err := os.WriteFile(full, []byte(strings.Repeat("x", 1<<20)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(sparse, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(sparse, 1<<40); err != nil {
		t.Fatal(err)
	}
	c := copies{}
	c.add(full, filepath.Join(dir, "a", "one"))
	c.add(full, filepath.Join(dir, "a", "two"))
	c.add(sparse, filepath.Join(dir, "b"))
	c.add(filepath.Join(dir, "none"), filepath.Join(dir, "c"))
	if c[filepath.Join(dir, "a")] < 2<<20 || c[dir] >= 1<<20 {
		t.Errorf("%v", c)
	}
	if err := c.fit(); err != nil {
		t.Error(err)
	}
	if err := (copies{dir: 1 << 60}).fit(); !errors.Is(err, ErrDiskFull) {
		t.Errorf("an exbibyte: %v", err)
	}
	if err := roomIn("/srv", 1<<20, 3<<20); err == nil || err.Error() != "/srv: not enough room on the disk: what is to be copied takes 3.0 MiB where it is, and 1.0 MiB are free" {
		t.Errorf("%v", err)
	}
}
