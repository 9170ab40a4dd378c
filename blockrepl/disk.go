package blockrepl

import (
	"path/filepath"
	"regexp"
	"strconv"
)

// Formats of images.
const (
	Raw   = "raw"
	QCOW2 = "qcow2"
)

// Disk is one disk of a VM on one node. Name, Size and Serial are the same on
// both nodes, Path and Format may differ.
type Disk struct {
	Name   string // [a-z][a-z0-9-]{0,15}, unique in the VM
	Path   string // of the image, absolute
	Format string // Raw or QCOW2
	Size   int64  // as the guest sees it, in bytes
	Serial string // seen by the guest; empty for none
}

// Names that are made from a disk's. No prefix, up to its dash, is another one's,
// so no two disks can collide. QEMU allows 31 bytes for a node's name; the
// longest prefix below has 7 and a disk's name at most 16.
func (d Disk) parent() string     { return "parent-" + d.Name }
func (d Disk) parentFile() string { return "pfile-" + d.Name }
func (d Disk) hidden() string     { return "hidden-" + d.Name }
func (d Disk) hiddenFile() string { return "hfile-" + d.Name }
func (d Disk) active() string     { return "active-" + d.Name }
func (d Disk) activeFile() string { return "afile-" + d.Name }
func (d Disk) childs() string     { return "childs-" + d.Name }
func (d Disk) colo() string       { return "colo-" + d.Name }
func (d Disk) nbd() string        { return "nbd-" + d.Name }
func (d Disk) target() string     { return "target-" + d.Name }
func (d Disk) job() string        { return "resync-" + d.Name }
func (d Disk) export() string     { return "exp-" + d.Name }
func (d Disk) device() string     { return "blk-" + d.Name }

// maxSerial is what virtio-blk can tell a guest.
const maxSerial = 20

var diskName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,15}$`)

// Validate checks what was declared, without looking at any file. The error is
// a *DiskError about the first disk that is wrong.
func Validate(disks []Disk) error {
	names, paths := map[string]bool{}, map[string]string{}
	for _, d := range disks {
		switch {
		case !diskName.MatchString(d.Name):
			return &DiskError{d.Name, "name must be a lower-case letter followed by at most 15 of a-z, 0-9 and -"}
		case names[d.Name]:
			return &DiskError{d.Name, "declared twice"}
		case !filepath.IsAbs(d.Path):
			return &DiskError{d.Name, "path " + strconv.Quote(d.Path) + " is not absolute"}
		case paths[filepath.Clean(d.Path)] != "":
			return &DiskError{d.Name, "has the same image as disk " + strconv.Quote(paths[filepath.Clean(d.Path)])}
		case d.Format != Raw && d.Format != QCOW2:
			return &DiskError{d.Name, "format " + strconv.Quote(d.Format) + " is neither raw nor qcow2"}
		case d.Size <= 0 || d.Size%512 != 0:
			// The replication driver compares the lengths of the image and
			// of the qcow2 overlays, which are multiples of 512.
			return &DiskError{d.Name, "size " + strconv.FormatInt(d.Size, 10) + " is not a positive multiple of 512 bytes"}
		case len(d.Serial) > maxSerial:
			return &DiskError{d.Name, "serial " + strconv.Quote(d.Serial) + " is longer than 20 bytes"}
		}
		names[d.Name], paths[filepath.Clean(d.Path)] = true, d.Name
	}
	return nil
}
