package colo

import (
	"context"
	"os"
	"sync"

	"github.com/coloctl/coloctl/blockrepl"
)

// Read-only disks are not mirrored: each node has its own image, and both must have the same content, because the guest goes on reading on the other
// node as if nothing had happened. Before a standby is made both nodes hash theirs, and one that is missing or different on the peer refuses
// protection. It is not copied: an operator who puts an ISO on one node is told to put it on the other.

// mediaCache remembers sums for as long as the files are the same.
type mediaCache struct {
	mu   sync.Mutex // held while an image is read, so that it is read once
	sums sync.Map   // by path: blockrepl.MediumSum
}

// mediumSum is what an image's content is now.
func (n *Node) mediumSum(ctx context.Context, d blockrepl.Medium) (string, error) {
	c := &n.media
	c.mu.Lock()
	defer c.mu.Unlock()
	if sum, ok := c.known(d); ok {
		return sum, nil
	}
	sum, err := blockrepl.SumMedium(ctx, d)
	if err != nil {
		return "", err
	}
	c.sums.Store(d.Path, sum)
	return sum.SHA256, nil
}

// known is what is remembered of an image that has not changed since.
func (c *mediaCache) known(d blockrepl.Medium) (string, bool) {
	have, ok := c.sums.Load(d.Path)
	if !ok {
		return "", false
	}
	sum := have.(blockrepl.MediumSum)
	return sum.SHA256, sum.Fresh(d)
}

// mediaSums are the sums of all read-only disks of a VM here, by name; nil if it has none.
func (n *Node) mediaSums(ctx context.Context, spec *Spec) (map[string]string, error) {
	var out map[string]string
	for _, d := range spec.media(n.cfg.StorageDir) {
		sum, err := n.mediumSum(ctx, d)
		if err != nil {
			return nil, err
		}
		if out == nil {
			out = map[string]string{}
		}
		out[d.Name] = sum
	}
	return out, nil
}

// compareMedia refuses a standby whose read-only disks are not the primary's.
func (n *Node) compareMedia(ctx context.Context, spec *Spec, theirs map[string]string) error {
	here, err := n.mediaSums(ctx, spec)
	if err != nil {
		return err
	}
	for name, sum := range here {
		if sum != theirs[name] {
			return &PeerMismatchError{What: "the content of the read-only disk " + name, Here: "SHA-256 " + sum, There: "SHA-256 " + theirs[name]}
		}
	}
	return nil
}

// mediaStatus is a VM's read-only disks, by name, as far as is known without reading them.
func (n *Node) mediaStatus(spec *Spec) map[string]DiskStatus {
	out := map[string]DiskStatus{}
	for _, d := range spec.media(n.cfg.StorageDir) {
		s := DiskStatus{Name: d.Name, ReadOnly: true}
		if st, err := os.Stat(d.Path); err == nil {
			s.InSync, s.Size = true, Size(st.Size())
		}
		if sum, ok := n.media.known(d); ok {
			s.SHA256 = sum
		}
		out[d.Name] = s
	}
	return out
}
