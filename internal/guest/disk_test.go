package guest

import (
	"crypto/sha256"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestReadFile(t *testing.T) {
	debugfs, err := find("debugfs")
	if errors.Is(err, ErrNoE2fsprogs) && os.Getenv("CI") != "true" {
		t.Skip(err)
	}
	dir := t.TempDir()
	image, scratch, text := filepath.Join(dir, "image"), filepath.Join(dir, "scratch"), filepath.Join(dir, "text")
	if err := FormatDisk(t.Context(), image, 16<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadFile(t.Context(), image, scratch, "counter.log"); err == nil {
		t.Error("a file that isn't there was read")
	}
	if err := os.WriteFile(text, []byte("1 a\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), debugfs, "-w", "-R", "write "+text+" counter.log", image).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	sum := func() [32]byte {
		data, err := os.ReadFile(image)
		if err != nil {
			t.Fatal(err)
		}
		return sha256.Sum256(data)
	}
	before := sum()
	got, err := ReadFile(t.Context(), image, scratch, "counter.log")
	if err != nil || string(got) != "1 a\n" {
		t.Errorf("%q, %v", got, err)
	}
	if sum() != before {
		t.Error("the image was changed")
	}
	if _, err := os.Stat(scratch); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a copy is left: %v", err)
	}
}
