package libvirt

import (
	"context"
	"errors"
	"fmt"

	golibvirt "github.com/digitalocean/go-libvirt"
	"libvirt.org/go/libvirtxml"
)

// Errors of taking a domain over.
var (
	// ErrRunning is returned when a domain has to be shut off first.
	ErrRunning = errors.New("the domain runs: shut it down first")
	// ErrTransient is returned for a domain without a definition: it ends with its QEMU.
	ErrTransient = errors.New("the domain has no definition of its own (transient)")
)

// Domain is one that libvirt has already. It belongs to one goroutine.
type Domain struct {
	Name string

	c   *Conn
	dom golibvirt.Domain
}

// OpenDomain finds a domain by its name. Close it when done.
func OpenDomain(ctx context.Context, a Address, name string) (*Domain, error) {
	c, err := Dial(ctx, a)
	if err != nil {
		return nil, err
	}
	d := &Domain{Name: name, c: c}
	if d.dom, err = c.lookup(ctx, name); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return d, nil
}

// Close lets go of libvirt.
func (d *Domain) Close() error { return d.c.Close() }

// Definition is what the domain is started from, as virsh dumpxml --inactive prints it; with secrets it is fit to define the domain again.
func (d *Domain) Definition(ctx context.Context, secrets bool) (text string, err error) {
	flags := golibvirt.DomainXMLInactive
	if secrets {
		flags |= golibvirt.DomainXMLSecure
	}
	err = d.c.call(ctx, "read the definition of "+d.Name, func(l *golibvirt.Libvirt) (err error) {
		text, err = l.DomainGetXMLDesc(d.dom, flags)
		return err
	})
	return text, err
}

// Running says whether the domain isn't shut off; also a paused or crashed one may have data that its disks lack.
func (d *Domain) Running(ctx context.Context) (bool, error) {
	var active int32
	err := d.c.call(ctx, "ask whether "+d.Name+" runs", func(l *golibvirt.Libvirt) (err error) {
		active, err = l.DomainIsActive(d.dom)
		return err
	})
	return active != 0, err
}

// Examine examines the domain, without changing anything. The function gives the size of an image, see [Facts].
func (d *Domain) Examine(ctx context.Context, size func(path, format string) (int64, error)) (*Examination, error) {
	definition, err := d.Definition(ctx, false)
	if err != nil {
		return nil, err
	}
	f := Facts{Size: size, Bridge: func(network string) (string, error) { return d.c.bridge(ctx, network) }}
	running, err := d.Running(ctx)
	if err != nil {
		return nil, err
	}
	err = d.c.call(ctx, "look at "+d.Name, func(l *golibvirt.Libvirt) error {
		n, err := l.DomainSnapshotNum(d.dom, 0)
		if err != nil {
			return err
		}
		f.Snapshots = int(n)
		saved, err := l.DomainHasManagedSaveImage(d.dom, 0)
		if err != nil {
			return err
		}
		f.SavedState = saved != 0
		if running {
			f.Live, err = l.DomainGetXMLDesc(d.dom, 0)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return Examine(definition, f)
}

// bridge finds the bridge of one of libvirt's networks, and refuses one that is only this host's.
func (c *Conn) bridge(ctx context.Context, network string) (string, error) {
	var text string
	err := c.call(ctx, "look at network "+network, func(l *golibvirt.Libvirt) error {
		n, err := l.NetworkLookupByName(network)
		if err != nil {
			return err
		}
		text, err = l.NetworkGetXMLDesc(n, 0)
		return err
	})
	if err != nil {
		return "", err
	}
	var n libvirtxml.Network
	if err := n.Unmarshal(text); err != nil {
		return "", fmt.Errorf("libvirt: network %s: %w", network, err)
	}
	switch {
	case n.Forward != nil && n.Forward.Mode == "bridge" && n.Bridge != nil:
		return n.Bridge.Name, nil
	case n.Forward == nil || n.Forward.Mode == "nat" || n.Forward.Mode == "route" || n.Forward.Mode == "open":
		return "", fmt.Errorf("libvirt's network %s is this host's alone: a copy on the other host would not be on it; use a bridge that both hosts have", network)
	}
	return "", fmt.Errorf("libvirt's network %s (%s) has no bridge for a tap", network, n.Forward.Mode)
}

// Undefine makes libvirt forget a domain that is shut off, so that nobody starts it beside the VM on the same disks. Its disks and its nvram stay.
func (d *Domain) Undefine(ctx context.Context) error {
	if err := d.Adoptable(ctx); err != nil {
		return err
	}
	return d.c.call(ctx, "undefine "+d.Name, func(l *golibvirt.Libvirt) error {
		return l.DomainUndefineFlags(d.dom, golibvirt.DomainUndefineKeepNvram)
	})
}

// Adoptable is nil if the domain's disks hold all its data and libvirt can be made to forget it.
func (d *Domain) Adoptable(ctx context.Context) error {
	running, err := d.Running(ctx)
	if err != nil {
		return err
	}
	if running {
		return fmt.Errorf("%s: %w", d.Name, ErrRunning)
	}
	var persistent int32
	err = d.c.call(ctx, "ask whether "+d.Name+" has a definition", func(l *golibvirt.Libvirt) (err error) {
		persistent, err = l.DomainIsPersistent(d.dom)
		return err
	})
	if err == nil && persistent == 0 {
		err = fmt.Errorf("%s: %w", d.Name, ErrTransient)
	}
	return err
}
