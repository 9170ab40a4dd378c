package blockrepl

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// Medium is a read-only image of a VM on one node: a disk that the guest can't write, or a CD-ROM. It is not replicated: both nodes have it, and
// its content must be the same ([SumMedium]). Name is unique among the VM's disks.
type Medium struct {
	Name   string // as a disk's
	Path   string // absolute
	Format string // Raw or QCOW2
	CDROM  bool   // the guest sees a CD-ROM drive; otherwise a virtio disk
}

func (m Medium) node() string     { return "medium-" + m.Name }
func (m Medium) fileNode() string { return "mfile-" + m.Name }

func (m Medium) disk() Disk { return Disk{Name: m.Name, Path: m.Path, Format: m.Format} }

type mediumFile struct {
	Driver   string `json:"driver"`
	NodeName string `json:"node-name"`
	Filename string `json:"filename"`
	ReadOnly bool   `json:"read-only"`
}

type mediumNode struct {
	Driver   string     `json:"driver"`
	NodeName string     `json:"node-name"`
	ReadOnly bool       `json:"read-only"`
	File     mediumFile `json:"file"`
}

type mediumDevice struct {
	Driver string `json:"driver"`
	ID     string `json:"id"`
	Drive  string `json:"drive"`
}

// MediaArgs returns QEMU's arguments for read-only images, the same for a primary and a standby. They go behind those of the disks.
func MediaArgs(media []Medium) []string {
	var args []string
	for _, m := range media {
		n := mediumNode{Driver: m.Format, NodeName: m.node(), ReadOnly: true,
			File: mediumFile{Driver: "file", NodeName: m.fileNode(), Filename: m.Path, ReadOnly: true}}
		if m.disk().onDevice() {
			n.File.Driver = "host_device"
		}
		driver := "virtio-blk-pci"
		if m.CDROM {
			driver = "ide-cd"
		}
		args = append(args, arg("-blockdev", n)...)
		args = append(args, arg("-device", mediumDevice{Driver: driver, ID: m.disk().device(), Drive: m.node()})...)
	}
	return args
}

// CheckMedium tells whether a QEMU could use the image now. Others may read it meanwhile. The error is an *ImageError.
func (im Images) CheckMedium(ctx context.Context, m Medium) (Info, error) {
	d := m.disk()
	if _, err := os.Stat(m.Path); errors.Is(err, fs.ErrNotExist) {
		return Info{}, d.fault(ErrMediumMissing, "", "copy it there, or correct the disk's path")
	}
	if err := d.regular(); err != nil {
		return Info{}, err
	}
	if d.Format == Raw {
		if name := foreignFormat(magicOf(d.Path)); name != "" {
			return Info{}, d.fault(ErrWrongFormat, "declared raw, but it begins like "+name, "correct the disk's format, or convert the image")
		}
	}
	i, err := im.Inspect(ctx, d)
	if err != nil {
		return Info{}, err
	}
	if i.Backing != "" {
		return i, d.fault(ErrBackingChain, "it needs "+i.Backing, "flatten it with qemu-img convert")
	}
	return i, nil
}

// MediumSum is what an image's content was found to be.
type MediumSum struct {
	SHA256 string // of the file, in hexadecimal digits
	stamp  mediumStamp
}

// mediumStamp changes when somebody writes to the file or puts another one in its place.
type mediumStamp struct {
	size, seconds, nanos int64
	inode                uint64
}

func stampOf(st os.FileInfo) mediumStamp {
	s := mediumStamp{size: st.Size(), seconds: st.ModTime().Unix(), nanos: int64(st.ModTime().Nanosecond())}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		s.inode = sys.Ino
	}
	return s
}

// Fresh says whether the file still is the one that was read, as far as its time, size and number tell. A device's content may change without a
// sign: it is never fresh.
func (s MediumSum) Fresh(m Medium) bool {
	st, err := os.Stat(m.Path)
	return err == nil && s.SHA256 != "" && st.Mode().IsRegular() && stampOf(st) == s.stamp
}

// SumMedium reads the whole image.
func SumMedium(ctx context.Context, m Medium) (MediumSum, error) {
	f, err := os.Open(m.Path)
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrMediumMissing
	}
	if err != nil {
		return MediumSum{}, m.disk().fault(err, "", "")
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return MediumSum{}, err
	}
	h, buf := sha256.New(), make([]byte, 1<<20)
	for {
		if err := context.Cause(ctx); err != nil {
			return MediumSum{}, err
		}
		n, err := f.Read(buf)
		h.Write(buf[:n])
		if errors.Is(err, io.EOF) {
			return MediumSum{SHA256: hex.EncodeToString(h.Sum(nil)), stamp: stampOf(st)}, nil
		}
		if err != nil {
			return MediumSum{}, m.disk().fault(err, "", "")
		}
	}
}
