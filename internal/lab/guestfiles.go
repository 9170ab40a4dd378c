package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"text/template"

	"github.com/coloctl/coloctl/internal/guest"
)

// GuestFiles are the lab's guest as files for a node of one's own: a kernel, an initramfs, a disk, and a VM's spec that names them.
type GuestFiles struct {
	Kernel string `json:"kernel"`
	Initrd string `json:"initrd"`
	Disk   string `json:"disk"` // with an empty file system; one that is there is left as it is
	Spec   string `json:"spec"`
}

// GuestOptions of WriteGuest.
type GuestOptions struct {
	Dir     string // of the files; the same on both nodes
	Name    string // of the VM
	Bridge  string
	Address netip.Prefix // of the guest, on the bridge
	Out     io.Writer    // progress
}

var guestSpec = template.Must(template.New("spec").Parse(`# The lab's guest: a small Linux with HTTP, FTP and echo services, to try things out.
name: {{.Name}}
memory: 256MiB
boot:
  kernel: {{.Dir}}/vmlinuz
  initrd: {{.Dir}}/initrd.img
  append: {{.Append}}
disks:
  - {name: vda, file: {{.Dir}}/{{.Name}}.raw, size: 64MiB}
nics:
  - {name: net0, bridge: {{.Bridge}}, mac: "{{.MAC}}"}
`))

// WriteGuest writes the files. The same options give the same files on every host with the same QEMU packages.
func WriteGuest(ctx context.Context, o GuestOptions) (*GuestFiles, error) {
	assets, err := PrepareAssets(ctx, o.Out)
	if err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // nothing secret is in it
		return nil, err
	}
	ip := o.Address.Addr().As4()
	var spec bytes.Buffer
	if err := guestSpec.Execute(&spec, map[string]string{
		"Name": o.Name, "Dir": dir, "Bridge": o.Bridge, "Append": guest.CommandLine(guest.Network{Addresses: []string{o.Address.String()}}),
		"MAC": fmt.Sprintf("52:54:%02x:%02x:%02x:%02x", ip[0], ip[1], ip[2], ip[3]),
	}); err != nil {
		return nil, err
	}
	f := &GuestFiles{filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "initrd.img"), filepath.Join(dir, o.Name+".raw"), filepath.Join(dir, o.Name+".yaml")}
	if _, err := os.Stat(f.Disk); errors.Is(err, fs.ErrNotExist) {
		err = guest.FormatDisk(ctx, f.Disk, 64<<20)
		if err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, err
	}
	for from, to := range map[string]string{assets.Kernel: f.Kernel, assets.Initrd: f.Initrd} {
		data, err := os.ReadFile(from)
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(to, data, 0o644); err != nil { //nolint:gosec // as above
			return nil, err
		}
	}
	return f, os.WriteFile(f.Spec, spec.Bytes(), 0o644) //nolint:gosec // as above
}
