package colo

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/colo/arbiter"
)

// DiskInfo is this node's half of a disk with its image.
type DiskInfo struct {
	DiskStatus
	Path      string `json:"path"`
	Format    string `json:"format"`
	Device    bool   `json:"device,omitempty"` // it is a block device
	Virtual   Size   `json:"virtual"`          // as a guest would see it, by the image
	Allocated Size   `json:"allocated"`        // on the node's storage
	Problem   string `json:"problem,omitempty"`
}

// Disks looks at the images of a VM's disks on this node.
func (n *Node) Disks(ctx context.Context, vm string) ([]DiskInfo, error) {
	m, err := n.machine(vm)
	if err != nil {
		return nil, err
	}
	_, spec := m.info()
	states := map[string]DiskStatus{}
	for _, s := range m.status().Disks {
		states[s.Name] = s
	}
	var out []DiskInfo
	for _, d := range spec.disks(n.cfg.StorageDir) {
		info := DiskInfo{DiskStatus: states[d.Name], Path: d.Path, Format: d.Format}
		got, err := n.images().Inspect(ctx, d)
		if err == nil && m.current() == nil {
			err = n.images().Check(ctx, d)
		}
		if err != nil {
			info.Problem = err.Error()
		}
		info.Virtual, info.Allocated, info.Device = Size(got.Size), Size(got.Allocated), got.Device
		out = append(out, info)
	}
	for _, d := range spec.media(n.cfg.StorageDir) {
		info := DiskInfo{DiskStatus: states[d.Name], Path: d.Path, Format: d.Format}
		got, err := n.images().CheckMedium(ctx, d)
		if err != nil {
			info.Problem = err.Error()
		}
		info.Virtual, info.Allocated, info.Device = Size(got.Size), Size(got.Allocated), got.Device
		out = append(out, info)
	}
	return out, nil
}

// ErrShrink is returned for a size that a disk would lose something by.
var ErrShrink = errors.New("disks don't shrink")

// ImageRequest is an image to be made in a node's storage folder.
type ImageRequest struct {
	File   string `json:"file"`           // relative to the storage folder, or absolute
	Format string `json:"format"`         // raw (default) or qcow2
	Size   Size   `json:"size,omitempty"` // of an empty one
	// From is an image on the node to copy, of any format that qemu-img reads; FromFormat says which. It must not need another image.
	From       string `json:"from,omitempty"`
	FromFormat string `json:"from_format,omitempty"`
}

// Image is one that was made.
type Image struct {
	Path   string `json:"path"`
	Format string `json:"format"`
	Size   Size   `json:"size"`
}

// importedName stands for a disk's name in messages about an image that belongs to no VM yet.
const importedName = "image"

// MakeImage makes an image that a VM's spec can name: an empty one, or a copy of another one. Nothing is left after an error.
func (n *Node) MakeImage(ctx context.Context, r ImageRequest) (Image, error) {
	d, format, err := n.newImage(ctx, r)
	if err == nil && r.From == "" {
		err = n.images().Create(ctx, d)
	} else if err == nil {
		err = n.images().Convert(ctx, r.From, format, d)
	}
	if err != nil {
		return Image{}, err
	}
	return Image{d.Path, d.Format, Size(d.Size)}, nil
}

// CheckImage tells why MakeImage would be refused now, or would hardly have room for the copy, and makes nothing.
func (n *Node) CheckImage(ctx context.Context, r ImageRequest) error {
	d, _, err := n.newImage(ctx, r)
	if err != nil {
		return err
	}
	c := copies{}
	if r.From != "" {
		c.add(r.From, d.Path)
	}
	return errors.Join(n.images().Creatable(d), c.fit())
}

// newImage is the image that is to be made, and the format of the one that it is a copy of.
func (n *Node) newImage(ctx context.Context, r ImageRequest) (d blockrepl.Disk, format string, err error) {
	setDefault(&r.Format, blockrepl.Raw)
	if r.File == "" || r.From != "" && r.Size != 0 {
		return d, "", errors.New("an image needs a file, and a size or another image to copy, which has a size of its own")
	}
	if leadsOut(r.File) {
		return d, "", fmt.Errorf("%s leads out of the storage folder: expected a path in it, or an absolute one", r.File)
	}
	d = blockrepl.Disk{Name: importedName, Path: DiskSpec{File: r.File}.path(n.cfg.StorageDir), Format: r.Format, Size: int64(r.Size)}
	if r.From != "" {
		if d.Size, format, err = n.images().Source(ctx, r.From, r.FromFormat); err != nil {
			return d, "", err
		}
	}
	return d, format, blockrepl.Validate([]blockrepl.Disk{d})
}

// Resize grows a disk of a VM that is switched off: this node's image, and the spec. The other half follows when the VM is protected next; until
// then only this one may be started. Disks don't shrink, and not while the VM runs: a quorum can't.
func (n *Node) Resize(ctx context.Context, vm, disk string, size Size) error {
	spec, tag, err := n.resized(vm, disk, size)
	if err != nil {
		return err
	}
	return n.ask(ctx, vm, ReqEdit, &editArgs{spec: spec, tag: tag, grow: true})
}

// CheckResize tells why Resize would be refused now, and changes nothing.
func (n *Node) CheckResize(ctx context.Context, vm, disk string, size Size) error {
	if _, _, err := n.resized(vm, disk, size); err != nil {
		return err
	}
	m, err := n.machine(vm)
	if err != nil {
		return err
	}
	if err := m.noBackup(); err != nil {
		return err
	}
	if err := m.arbiterAnswers(ctx); err != nil && !errors.Is(err, arbiter.ErrNoRecord) {
		return err
	}
	_, spec := m.info()
	return n.launcher.Check(ctx, spec)
}

// resized is a VM's spec with another size of a disk, and the present one's tag, if it can have that now.
func (n *Node) resized(vm, disk string, size Size) (spec *Spec, tag string, err error) {
	m, err := n.machine(vm)
	if err != nil {
		return nil, "", err
	}
	if spec, tag, err = n.Spec(vm); err != nil {
		return nil, "", err
	}
	i, err := spec.mirroredDisk(disk)
	if err != nil {
		return nil, "", err
	}
	switch s := m.State(); {
	case size <= spec.Disks[i].Size:
		return nil, "", fmt.Errorf("disk %s of %s has %s already, and %w", disk, vm, spec.Disks[i].Size, ErrShrink)
	case s != Stopped:
		return nil, "", fmt.Errorf("%s is %s here: changing a disk's size is %w: stop it first, and ask the node that ran it", vm, s, ErrNotWhileRunning)
	}
	spec.Disks[i].Size = size
	if err := spec.Validate(); err != nil {
		return nil, "", err
	}
	if _, err := os.Stat(spec.Disks[i].path(n.cfg.StorageDir)); err != nil {
		return nil, "", err
	}
	return spec, tag, nil
}
