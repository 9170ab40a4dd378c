package guest

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/cavaliergopher/cpio"
)

// needed are the kernel modules of the guest; a kernel may have some built in.
// button and evdev are for the power button.
var needed = []string{"virtio_pci", "virtio_blk", "virtio_net", "ext4", "button", "evdev"}

// ImageOptions say what goes into an image and where it is kept.
type ImageOptions struct {
	InitBinary string   // the static program that becomes /init: see Init
	ModulesDir string   // the kernel's modules: …/lib/modules/RELEASE
	CacheDir   string   // is created if missing
	Modules    []string // of the kernel, besides those that every guest needs
}

// Image returns the path of an initramfs for these options and builds it if
// the cache does not have it yet.
func Image(ctx context.Context, o ImageOptions) (string, error) {
	program, err := os.ReadFile(o.InitBinary)
	if err != nil {
		return "", err
	}
	set, err := openModules(o.ModulesDir)
	if err != nil {
		return "", fmt.Errorf("modules of the guest's kernel: %w", err)
	}
	modules, err := set.resolve(slices.Concat(needed, o.Modules)...)
	if err != nil {
		return "", fmt.Errorf("%s: %w", o.ModulesDir, err)
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	var archive bytes.Buffer
	if err := writeArchive(&archive, program, modules); err != nil {
		return "", err
	}
	sum := sha256.Sum256(archive.Bytes())
	path := filepath.Join(o.CacheDir, "initrd-"+hex.EncodeToString(sum[:8])+".gz")
	switch _, err := os.Stat(path); {
	case err == nil:
		return path, nil
	case !errors.Is(err, fs.ErrNotExist):
		return "", err
	}
	return path, store(path, archive.Bytes())
}

// writeArchive writes the initramfs: a newc archive as the kernel wants it,
// the same bytes for the same content.
func writeArchive(w io.Writer, program []byte, modules []module) error {
	type entry struct {
		name string
		mode cpio.FileMode
		data []byte
	}
	entries := []entry{
		{"dev", cpio.TypeDir | 0o755, nil},
		{"proc", cpio.TypeDir | 0o755, nil},
		{"sys", cpio.TypeDir | 0o755, nil},
		{"data", cpio.TypeDir | 0o755, nil},
		{"modules", cpio.TypeDir | 0o755, nil},
		{"init", cpio.TypeReg | 0o755, program},
	}
	var order bytes.Buffer
	for _, m := range modules {
		fmt.Fprintf(&order, "%s.ko\n", m.name)
		entries = append(entries, entry{"modules/" + m.name + ".ko", cpio.TypeReg | 0o644, m.data})
	}
	entries = append(entries, entry{"modules/order", cpio.TypeReg | 0o644, order.Bytes()})

	archive := cpio.NewWriter(w)
	for i, e := range entries {
		// Equal inode numbers with more than one link would be hard links.
		header := &cpio.Header{Name: e.name, Mode: e.mode, Size: int64(len(e.data)), Inode: int64(i + 1), Links: 1}
		if err := archive.WriteHeader(header); err != nil {
			return err
		}
		if _, err := archive.Write(e.data); err != nil {
			return err
		}
	}
	return archive.Close()
}

// store compresses data into the file path, which appears whole or not at all.
func store(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".initrd-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())                        // gone already when all went well
	z, err := gzip.NewWriterLevel(f, gzip.BestSpeed) // it is read once per boot, and often made on a busy machine
	if err != nil {
		return err
	}
	_, err = z.Write(data)
	err = errors.Join(err, z.Close(), f.Chmod(0o644), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
