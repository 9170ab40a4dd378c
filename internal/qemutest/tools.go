package qemutest

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// Tool is another program that qemu-img's package or its neighbours have, such as qemu-storage-daemon or qemu-nbd.
func Tool(t testing.TB, name string) string {
	t.Helper()
	img := Img(t)
	if path := filepath.Join(filepath.Dir(img), name); exists(path) {
		return path
	}
	script, err := os.ReadFile(img)
	if err != nil || !bytes.HasPrefix(script, []byte("#!")) {
		Missing(t, "there is no %s beside %s", name, img)
	}
	// It starts the program of an unpacked package set.
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, bytes.ReplaceAll(script, []byte("qemu-img"), []byte(name)), 0o700); err != nil { //nolint:gosec // it is a program
		t.Fatal(err)
	}
	return path
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
