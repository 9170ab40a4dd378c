package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
	"github.com/coloctl/coloctl/colo/libvirt"
	"github.com/coloctl/coloctl/internal/lab"
)

func importFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "libvirt", Usage: "the `DOMAIN` of this host's libvirt that is to become a VM"},
		&cli.StringFlag{Name: "uri", Value: "qemu:///system", Usage: "`URI` of libvirt: qemu:///system or qemu:///session"},
		&cli.StringFlag{Name: "socket", Usage: "`PATH` of libvirtd's socket", DefaultText: "libvirt's own"},
		&cli.StringFlag{Name: "file", Aliases: []string{"f"}, Usage: "write the spec to `FILE`, which must not be there, instead of standard output", TakesFile: true},
		&cli.StringFlag{Name: "qemu-img", Value: "qemu-img", Usage: "`PROGRAM` that looks at the images"},
		&cli.BoolFlag{Name: "adopt", Usage: "make the VM on this host's colod, on the domain's own images, and let libvirt forget the domain, which must be shut off"},
	}
}

// errCannotProtect is returned for a domain that has what no VM may have.
var errCannotProtect = errors.New("this domain can't be protected as it is")

// imported is what the command prints.
type imported struct {
	*libvirt.Examination
	Adopted bool     `json:"adopted"`
	Saved   string   `json:"saved,omitempty"` // file with the domain's definition
	Steps   []string `json:"steps,omitempty"` // of a dry run
}

func vmImport(cc *cli.Context) error {
	name := cc.String("libvirt")
	if name == "" {
		return usagef("vm import: which domain? give --libvirt DOMAIN (see: virsh list --all)")
	}
	if cc.Bool("adopt") && cc.IsSet("file") {
		return usagef("vm import: --adopt makes the VM at once; its spec is shown by coloctl vm show. Leave -f out")
	}
	d, err := libvirt.OpenDomain(cc.Context, libvirt.Address{Socket: cc.String("socket"), URI: cc.String("uri")}, name)
	if err != nil {
		return err
	}
	defer d.Close()
	x, err := d.Examine(cc.Context, imageSize(cc.Context, cc.String("qemu-img")))
	if err != nil {
		return err
	}
	if format(cc) == lab.FormatTable {
		writeFindings(cc.App.ErrWriter, x)
	}
	if n := len(x.Refused()); n > 0 {
		if f := format(cc); f != lab.FormatTable {
			if err := lab.Encode(cc.App.Writer, f, imported{Examination: x}); err != nil {
				return err
			}
		}
		return fmt.Errorf("%s: %w: %d of its parts (refused above); nothing was changed", name, errCannotProtect, n)
	}
	text, err := colo.MarshalSpec(x.Spec)
	if err != nil {
		return err
	}
	if x.Spec, err = colo.ParseSpec(text, "the spec of "+name); err != nil {
		return err
	}
	if cc.Bool("adopt") {
		return withSite(func(cc *cli.Context, s *site) error { return adopt(cc, s, d, x, text) })(cc)
	}
	return writeSpec(cc, x, text)
}

func imageSize(ctx context.Context, qemuImg string) func(path, format string) (int64, error) {
	return func(path, format string) (int64, error) {
		im := blockrepl.Images{QEMUImg: []string{qemuImg}}
		d := blockrepl.Disk{Name: "disk", Path: path, Format: format}
		i, err := im.Inspect(ctx, d)
		if err == nil && i.Backing != "" {
			err = fmt.Errorf("%s needs %s below it: flatten it with qemu-img convert, or virsh blockpull", path, i.Backing)
		}
		return i.Size, err
	}
}

func writeFindings(w io.Writer, x *libvirt.Examination) {
	for _, f := range x.Findings {
		line := "-"
		if f.Line > 0 {
			line = fmt.Sprint(f.Line)
		}
		fmt.Fprintf(w, "%5s  %-8s %-22s %s\n", line, f.Verdict, f.Element, f.Text)
	}
	if len(x.Findings) > 0 {
		fmt.Fprintf(w, "(lines of: virsh dumpxml --inactive %s)\n", x.Domain)
	}
	if x.Running {
		fmt.Fprintf(w, "%s runs: it is only looked at\n", x.Domain)
	}
}

func writeSpec(cc *cli.Context, x *libvirt.Examination, text []byte) error {
	switch f := format(cc); {
	case f != lab.FormatTable:
		return lab.Encode(cc.App.Writer, f, imported{Examination: x})
	case !cc.IsSet("file") || cc.Bool("dry-run"):
		_, err := cc.App.Writer.Write(text)
		return err
	}
	return writeNew(cc.String("file"), text, 0o644)
}

// writeNew writes a file that must not be there.
func writeNew(path string, text []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s: %w", path, errExists)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Close())
}

// adopt makes the VM and lets libvirt forget the domain. The VM isn't started before the domain is gone, so that nothing runs twice on the images; the
// definition is kept in a file, so that virsh define is the way back.
func adopt(cc *cli.Context, s *site, d *libvirt.Domain, x *libvirt.Examination, text []byte) error {
	t, name := s.Nodes[0], x.Spec.Name
	if err := d.Adoptable(cc.Context); err != nil {
		return err
	}
	im := blockrepl.Images{QEMUImg: []string{cc.String("qemu-img")}}
	for _, disk := range x.Spec.Disks {
		if err := im.Check(cc.Context, blockrepl.Disk{Name: disk.Name, Path: disk.File, Format: disk.Format, Size: int64(disk.Size)}); err != nil {
			return err
		}
	}
	saved, err := filepath.Abs(strings.ReplaceAll(d.Name, "/", "-") + ".libvirt.xml")
	if err != nil {
		return err
	}
	steps := []string{
		"write the domain's definition to " + saved, "make the VM " + name + " on " + t.String() + ", on the domain's images; it is not started",
		"let libvirt forget the domain " + d.Name + " (its images and nvram stay)",
	}
	if cc.Bool("dry-run") {
		if f := format(cc); f != lab.FormatTable {
			return lab.Encode(cc.App.Writer, f, imported{Examination: x, Steps: steps})
		}
		return tellSteps(cc, name, t, "import", steps)
	}
	if err := confirm(cc, "", "%s\nTake the domain %s over from libvirt?", strings.Join(steps, "\n"), d.Name); err != nil {
		return err
	}
	definition, err := d.Definition(cc.Context, true)
	if err != nil {
		return err
	}
	if err := writeNew(saved, []byte(definition), 0o600); err != nil {
		return err
	}
	if _, err := t.Create(cc.Context, api.SpecText{YAML: text, File: name + ".yaml", Reason: cc.String("reason")}); err != nil {
		return errors.Join(attempt(err, "import", name, t), os.Remove(saved))
	}
	if err := d.Undefine(cc.Context); err != nil { // it was started meanwhile, for one
		undo := t.Delete(context.WithoutCancel(cc.Context), name, api.DeleteRequest{Reason: "the domain could not be taken over from libvirt"})
		return errors.Join(err, undo, os.Remove(saved))
	}
	if f := format(cc); f != lab.FormatTable {
		return lab.Encode(cc.App.Writer, f, imported{Examination: x, Adopted: true, Saved: saved})
	}
	fmt.Fprintf(cc.App.ErrWriter, "the domain is the VM %s now; to start it: coloctl vm start %s\nback: coloctl vm delete %s; virsh define %s\n", name, name, name, saved)
	_, err = fmt.Fprintln(cc.App.Writer, name)
	return err
}
