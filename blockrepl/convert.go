package blockrepl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
)

// CreateBackup makes an empty qcow2 image, on top of another one if base is not
// empty. base is noted relative to path, so that both can be moved together.
func (im Images) CreateBackup(ctx context.Context, path string, size int64, base string) error {
	if base == "" {
		return im.create(ctx, path, QCOW2, size)
	}
	rel, err := filepath.Rel(filepath.Dir(path), base)
	if err != nil {
		return err
	}
	_, err = im.run(ctx, "create", "-q", "-f", QCOW2, "-b", rel, "-F", QCOW2, "--", path, strconv.FormatInt(size, 10))
	return err
}

// Convert makes a disk's image, which must not be there yet, from an image of any
// format that qemu-img reads; from's backing files are copied with it. An empty
// format is found out: only for images whose content nobody could have forged.
// The result is flushed. After an error nothing is left.
func (im Images) Convert(ctx context.Context, from, format string, d Disk) (err error) {
	f, err := os.OpenFile(d.Path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	switch {
	case errors.Is(err, fs.ErrExist):
		return d.fault(ErrExists, "", "remove it if nobody needs it, or choose another name")
	case err != nil:
		return d.fault(err, "", "")
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			if e := os.Remove(d.Path); !errors.Is(e, fs.ErrNotExist) { // qemu-img may have
				err = errors.Join(err, e)
			}
		}
	}()
	args := []string{"convert", "-q", "-O", d.Format}
	if format != "" {
		args = append(args, "-f", format)
	}
	if _, err := im.run(ctx, append(args, "--", from, d.Path)...); err != nil {
		return d.fault(err, "", "")
	}
	return f.Sync()
}

// Source looks at an image that is to be copied, of the given format or, if that
// is empty, of the one that it begins like, and returns its size and format. One
// that is in use, or that needs another file, is refused: it may have been forged
// to show that file's content.
func (im Images) Source(ctx context.Context, path, format string) (size int64, as string, err error) {
	d := Disk{Name: "source", Path: path}
	if err := d.regular(); err != nil {
		return 0, "", err
	}
	f, err := os.Open(path)
	if err != nil {
		return 0, "", d.fault(err, "", "")
	}
	defer f.Close()
	if err := d.unused(f); err != nil {
		return 0, "", err
	}
	args := []string{"info", "--output=json"}
	if format != "" {
		args = append(args, "-f", format)
	}
	out, err := im.run(ctx, append(args, "--", path)...)
	if err != nil {
		return 0, "", d.fault(err, "", "")
	}
	var i struct {
		Format  string `json:"format"`
		Size    int64  `json:"virtual-size"`
		Backing string `json:"backing-filename"`
		Special struct {
			Data struct {
				DataFile string `json:"data-file"`
			} `json:"data"`
		} `json:"format-specific"`
	}
	if err := json.Unmarshal(out, &i); err != nil {
		return 0, "", d.fault(fmt.Errorf("what qemu-img says: %w", err), "", "")
	}
	if needs := i.Backing + i.Special.Data.DataFile; needs != "" {
		return 0, "", d.fault(ErrBackingChain, "it needs "+needs, "flatten it with qemu-img convert")
	}
	return i.Size, i.Format, nil
}

// Grow makes a disk's image as large as declared, when it is smaller; what is
// new reads as zeroes. It refuses to touch one that is in use or that needs
// another one. A block device must be grown by who made it.
func (im Images) Grow(ctx context.Context, d Disk) error {
	f, err := os.OpenFile(d.Path, os.O_RDWR, 0)
	if err != nil {
		return d.fault(ErrReadOnly, err.Error(), "check owner, mode and mount options")
	}
	defer f.Close()
	i, err := im.Inspect(ctx, d)
	switch {
	case err != nil:
		return err
	case i.Size >= d.Size:
		return nil
	case i.Backing != "":
		return d.fault(ErrBackingChain, "it needs "+i.Backing, "flatten it with qemu-img convert")
	case d.onDevice() && d.Format == Raw:
		return d.fault(ErrWrongSize, "the device has "+strconv.FormatInt(i.Size, 10)+" bytes", "grow the volume itself, for example with lvextend")
	}
	if err := d.unused(f); err != nil {
		return err
	}
	if _, err := im.run(ctx, "resize", "-q", "-f", d.Format, "--", d.Path, strconv.FormatInt(d.Size, 10)); err != nil {
		return d.fault(err, "", "")
	}
	return f.Sync()
}
