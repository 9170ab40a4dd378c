package blockrepl

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Images works on image files with qemu-img. Its methods may be called
// concurrently for different files.
type Images struct {
	QEMUImg []string // argv prefix, such as {"/usr/bin/qemu-img"}
}

// Info is what is known of an image.
type Info struct {
	Size      int64  // as the guest sees it, in bytes
	Allocated int64  // bytes on disk
	Backing   string // file that it needs below it; empty if none
	Device    bool   // it is a block device
}

// Create makes a disk's image, all zeroes. It fails with ErrExists rather than
// touch a file that is there.
func (im Images) Create(ctx context.Context, d Disk) error {
	if err := Validate([]Disk{d}); err != nil {
		return err
	}
	if err := d.noDevice(); err != nil {
		return err
	}
	// qemu-img would truncate what is there, so the name is taken first.
	f, err := os.OpenFile(d.Path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	switch {
	case errors.Is(err, fs.ErrExist):
		return d.fault(ErrExists, "", "remove it if nobody needs it, or use it as it is")
	case err != nil:
		return d.folderFault(err)
	}
	_ = f.Close()
	if err := im.create(ctx, d.Path, d.Format, d.Size); err != nil {
		_ = os.Remove(d.Path)
		return d.fault(err, "", "")
	}
	return nil
}

// Creatable tells why Create, or Convert, could not make a disk's image now, as far as that is seen without making it.
func (im Images) Creatable(d Disk) error {
	if err := Validate([]Disk{d}); err != nil {
		return err
	}
	if _, err := os.Lstat(d.Path); err == nil {
		return d.fault(ErrExists, "", "remove it if nobody needs it, or choose another name")
	}
	if err := d.noDevice(); err != nil {
		return err
	}
	if err := unix.Access(filepath.Dir(d.Path), unix.W_OK); err != nil {
		return d.folderFault(err)
	}
	return nil
}

// noDevice refuses to make a file where devices are, which would be gone at the next boot.
func (d Disk) noDevice() error {
	if !strings.HasPrefix(filepath.Clean(d.Path), "/dev/") {
		return nil
	}
	return d.fault(ErrMissing, "there is no such device", "make the volume first, for example with lvcreate")
}

// folderFault is why nothing can be made in the image's folder.
func (d Disk) folderFault(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return d.fault(err, "", "make its folder, or mount what belongs there")
	}
	return d.fault(err, "", "")
}

func (im Images) create(ctx context.Context, path, format string, size int64) error {
	_, err := im.run(ctx, "create", "-q", "-f", format, "--", path, strconv.FormatInt(size, 10))
	return err
}

// Inspect reads an image's header as the format that the disk declares. The
// image may be in use. The format is never guessed: a guest could write the
// header of another one into its raw disk, and so make us open any file.
func (im Images) Inspect(ctx context.Context, d Disk) (Info, error) {
	if err := d.regular(); err != nil {
		return Info{}, err
	}
	out, err := im.run(ctx, "info", "--output=json", "-U", "-f", d.Format, "--", d.Path)
	if err != nil {
		if d.Format == QCOW2 && !strings.HasPrefix(magicOf(d.Path), qcow2Magic) {
			return Info{}, d.fault(ErrWrongFormat, "it is not qcow2", "correct the disk's format")
		}
		return Info{}, d.fault(err, "", "")
	}
	var i struct {
		VirtualSize int64  `json:"virtual-size"`
		ActualSize  int64  `json:"actual-size"`
		Backing     string `json:"backing-filename"`
	}
	if err := json.Unmarshal(out, &i); err != nil {
		return Info{}, d.fault(fmt.Errorf("what qemu-img says: %w", err), "", "")
	}
	return Info{Size: i.VirtualSize, Allocated: i.ActualSize, Backing: i.Backing, Device: d.onDevice()}, nil
}

// Check tells whether a QEMU could use the disk's image now. The error is an
// *ImageError.
func (im Images) Check(ctx context.Context, d Disk) error {
	if err := d.regular(); err != nil {
		return err
	}
	f, err := os.OpenFile(d.Path, os.O_RDWR, 0)
	if err != nil {
		return d.fault(ErrReadOnly, err.Error(), "check owner, mode and mount options")
	}
	defer f.Close()
	if d.onDevice() {
		if err := d.unmounted(); err != nil {
			return err
		}
	}
	if d.Format == Raw {
		if name := foreignFormat(magicOf(d.Path)); name != "" {
			return d.fault(ErrWrongFormat, "declared raw, but it begins like "+name, "correct the disk's format, or convert the image")
		}
	}
	i, err := im.Inspect(ctx, d)
	if err != nil {
		return err
	}
	if i.Backing != "" {
		return d.fault(ErrBackingChain, "it needs "+i.Backing, "flatten it with qemu-img convert")
	}
	// A raw device may be larger, as volumes are made in whole extents: QEMU is told where it ends.
	if i.Size != d.Size && (i.Size < d.Size || d.Format != Raw || !d.onDevice()) {
		return d.fault(ErrWrongSize, fmt.Sprintf("the guest would see %d bytes instead of %d", i.Size, d.Size), "correct the disk's size, or resize the image")
	}
	return d.unused(f)
}

// regular is nil if there is a file to look at.
func (d Disk) regular() error {
	st, err := os.Stat(d.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return d.fault(ErrMissing, "", "create it, or correct the disk's path")
	case err != nil:
		return d.fault(err, "", "")
	case !st.Mode().IsRegular() && !isBlockDevice(st.Mode()):
		return d.fault(ErrNotRegular, "it is "+st.Mode().Type().String(), "only files and block devices can be disks")
	}
	return nil
}

func isBlockDevice(m fs.FileMode) bool { return m&fs.ModeDevice != 0 && m&fs.ModeCharDevice == 0 }

// onDevice says whether the disk's image is a block device, such as a logical
// volume, rather than a file. What isn't there is no device.
func (d Disk) onDevice() bool {
	st, err := os.Stat(d.Path)
	return err == nil && isBlockDevice(st.Mode())
}

// QEMU locks single bytes of an image: those from 100 on for what it does, those
// from 200 on for what it can't stand from others (block/file-posix.c).
const (
	lockStart = 100
	lockBytes = 164
)

// unused is nil if no QEMU reads or writes the image. It takes no lock itself,
// so it doesn't disturb a QEMU that opens the image now. A standby that waits for
// its primary holds no locks on what it doesn't export.
func (d Disk) unused(f *os.File) error {
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: lockStart, Len: lockBytes}
	err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &l)
	if err != nil || l.Type == unix.F_UNLCK {
		return nil // a file system without locks can't tell
	}
	return d.fault(ErrInUse, "another process has locked it", "see who with: lslocks, or fuser "+d.Path)
}

// unmounted is nil if the kernel lets a block device be opened for oneself
// alone: it is neither mounted nor a part of something else.
func (d Disk) unmounted() error {
	f, err := os.OpenFile(d.Path, os.O_RDONLY|os.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return d.fault(ErrInUse, "the device is mounted, or part of another one", "see by what with: lsblk "+d.Path)
	}
	if err != nil {
		return d.fault(err, "", "")
	}
	return f.Close()
}

// unopened is nil if nobody but us has the file open: the kernel grants a write
// lease only then. A file system without leases can't tell.
func (d Disk) unopened(f *os.File) error {
	_, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK)
	if errors.Is(err, unix.EAGAIN) {
		return d.fault(ErrInUse, "another process has it open", "see who with: fuser "+d.Path)
	}
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
		return err
	}
	return nil
}

func (d Disk) fault(reason error, detail, advice string) error {
	return &ImageError{Disk: d.Name, Path: d.Path, Reason: reason, Detail: detail, Advice: advice}
}

// CreateOverlays makes the empty overlays of a standby in dir, anew each time.
// It refuses, with ErrInUse, while a QEMU has the old ones. Each can grow to the
// disk's size until the next checkpoint, and on a promoted secondary until they
// are committed; on tmpfs a host that crashes before that loses them.
func (im Images) CreateOverlays(ctx context.Context, dir string, disks []Disk) error {
	if err := im.RemoveOverlays(dir, disks); err != nil {
		return err
	}
	for _, d := range disks {
		active, hidden := overlayPaths(dir, d)
		for _, path := range []string{active, hidden} {
			if err := im.create(ctx, path, QCOW2, d.Size); err != nil {
				return &ImageError{Disk: d.Name, Path: path, Reason: err}
			}
		}
	}
	return nil
}

// OverlaySize is how many bytes the overlays of a standby, or of a secondary, take where they are. Those that are not there take none.
func OverlaySize(dir string, disks []Disk) (int64, error) {
	var sum int64
	for _, d := range disks {
		active, hidden := overlayPaths(dir, d)
		for _, path := range []string{active, hidden} {
			var st unix.Stat_t
			err := unix.Stat(path, &st)
			if errors.Is(err, unix.ENOENT) {
				continue
			}
			if err != nil {
				return sum, &ImageError{Disk: d.Name, Path: path, Reason: err}
			}
			sum += st.Blocks * 512
		}
	}
	return sum, nil
}

// RemoveOverlays removes what CreateOverlays made. Files that aren't there are
// no error, files that a QEMU has are: ErrInUse.
func (im Images) RemoveOverlays(dir string, disks []Disk) error {
	var there []string
	for _, d := range disks {
		active, hidden := overlayPaths(dir, d)
		for _, path := range []string{active, hidden} {
			f, err := os.Open(path)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			o := Disk{Name: d.Name, Path: path}
			if err != nil {
				return o.fault(err, "", "")
			}
			err = o.unopened(f)
			_ = f.Close()
			if err != nil {
				return err
			}
			there = append(there, path)
		}
	}
	for _, path := range there {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Sums hashes a part of an image as [Content.Sums] does, without the QEMU that has it open. That must not write to it meanwhile. It keeps a copy of the
// part in dir.
func (im Images) Sums(ctx context.Context, d Disk, p Part, dir string) ([]byte, error) {
	offset, length := p.Offset, p.Length
	if offset%HashBlock != 0 || offset < 0 || length <= 0 || offset+length > d.Size {
		return nil, errors.New("blockrepl: hashes of a range that the disk doesn't have")
	}
	f, err := os.CreateTemp(dir, "part-*")
	if err != nil {
		return nil, d.fault(err, "", "")
	}
	defer os.Remove(f.Name())
	defer f.Close()
	// A window onto the image: qemu-img dd takes its count from the image's beginning.
	window, err := json.Marshal(map[string]any{"driver": Raw, "offset": offset, "size": length,
		"file": map[string]any{"driver": d.Format, "file": map[string]any{"driver": "file", "filename": d.Path}}})
	if err != nil {
		return nil, err
	}
	if _, err := im.run(ctx, "convert", "-U", "-O", Raw, "--", "json:"+string(window), f.Name()); err != nil {
		return nil, d.fault(err, "", "")
	}
	out, err := os.Open(f.Name()) // what qemu-img has made may be another file
	if err != nil {
		return nil, d.fault(err, "", "")
	}
	part := &Content{size: length, file: out}
	defer part.Close()
	return part.Sums(ctx, Part{Key: p.Key, Length: length})
}

const qcow2Magic = "QFI\xfb"

// foreignFormat names the format that a file's beginning is typical of.
func foreignFormat(beginning string) string {
	for _, f := range []struct{ magic, name string }{
		{qcow2Magic, "qcow2"}, {"KDMV", "vmdk"}, {"vhdxfile", "vhdx"}, {"conectix", "vpc"}, {"LUKS\xba\xbe", "luks"},
	} {
		if strings.HasPrefix(beginning, f.magic) {
			return f.name
		}
	}
	return ""
}

// magicOf returns the first bytes of a file, or "".
func magicOf(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	buf := make([]byte, 8)
	n, _ := io.ReadFull(f, buf)
	return string(buf[:n])
}

// run executes qemu-img and returns what it printed.
func (im Images) run(ctx context.Context, args ...string) ([]byte, error) {
	if len(im.QEMUImg) == 0 {
		return nil, errors.New("blockrepl: no qemu-img is configured")
	}
	argv := append(append([]string{}, im.QEMUImg...), args...)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if msg := strings.TrimSpace(stderr.String()); msg != "" {
			return nil, fmt.Errorf("qemu-img %s: %s", args[0], strings.TrimPrefix(msg, "qemu-img: "))
		}
		return nil, fmt.Errorf("qemu-img %s: %w", args[0], err)
	}
	return stdout.Bytes(), nil
}
