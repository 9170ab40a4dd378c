package blockrepl

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestImages(t *testing.T) {
	ctx := testContext(t)
	im, dir := images(t), t.TempDir()
	raw := Disk{Name: "vda", Path: filepath.Join(dir, "a, b.raw"), Format: Raw, Size: 8 * mib}
	qcow := Disk{Name: "vdb", Path: filepath.Join(dir, "-b.qcow2"), Format: QCOW2, Size: 8 * mib}
	for _, d := range []Disk{raw, qcow} {
		if err := im.Check(ctx, d); !errors.Is(err, ErrMissing) {
			t.Errorf("%s before it is made: %v", d.Format, err)
		}
		must(t, im.Create(ctx, d))
		must(t, im.Check(ctx, d))
		if err := im.Create(ctx, d); !errors.Is(err, ErrExists) {
			t.Errorf("%s made twice: %v", d.Format, err)
		}
		if i, err := im.Inspect(ctx, d); err != nil || i.Size != d.Size || i.Allocated > mib || i.Backing != "" {
			t.Errorf("%s: %+v %v", d.Format, i, err)
		}
	}

	backed := Disk{Name: "vdc", Path: filepath.Join(dir, "c.qcow2"), Format: QCOW2, Size: 8 * mib}
	_, err := im.run(ctx, "create", "-q", "-f", "qcow2", "-b", raw.Path, "-F", "raw", backed.Path)
	must(t, err)
	short := filepath.Join(dir, "short.qcow2")
	must(t, os.WriteFile(short, []byte("QFI\xfb and no more"), 0o600))
	with := func(d Disk, change func(*Disk)) Disk { change(&d); return d }
	for name, c := range map[string]struct {
		disk Disk
		want error
	}{
		"backing file":          {backed, ErrBackingChain},
		"larger raw":            {with(raw, func(d *Disk) { d.Size -= 512 }), ErrWrongSize},
		"smaller qcow2":         {with(qcow, func(d *Disk) { d.Size += 512 }), ErrWrongSize},
		"qcow2 as raw":          {with(qcow, func(d *Disk) { d.Format = Raw }), ErrWrongFormat},
		"raw as qcow2":          {with(raw, func(d *Disk) { d.Format = QCOW2 }), ErrWrongFormat},
		"folder":                {with(raw, func(d *Disk) { d.Path = dir }), ErrNotRegular},
		"device":                {with(raw, func(d *Disk) { d.Path = "/dev/null" }), ErrNotRegular},
		"name in missing place": {with(raw, func(d *Disk) { d.Path = filepath.Join(dir, "none", "x") }), ErrMissing},
	} {
		err := im.Check(ctx, c.disk)
		var ie *ImageError
		if !errors.Is(err, c.want) || !errors.As(err, &ie) || ie.Path != c.disk.Path {
			t.Errorf("%s: %v", name, err)
		} else {
			t.Log(err)
		}
	}
	var ie *ImageError
	if err := im.Check(ctx, with(qcow, func(d *Disk) { d.Path = short })); !errors.As(err, &ie) {
		t.Errorf("damaged qcow2: %v", err)
	} else {
		t.Log(err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := im.Check(cancelled, raw); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := (Images{}).Check(ctx, raw); err == nil {
		t.Error("no error without qemu-img")
	}
}

// TestImagesInUse: a running QEMU is noticed on images and overlays, and can be
// inspected meanwhile.
func TestImagesInUse(t *testing.T) {
	ctx := testContext(t)
	h := newHost(t, "h", Raw, QCOW2)
	h.startStandby(ctx)
	im := images(t)
	for _, d := range h.disks {
		if err := im.Check(ctx, d); !errors.Is(err, ErrInUse) {
			t.Errorf("%s: %v", d.Format, err)
		}
		if i, err := im.Inspect(ctx, d); err != nil || i.Size != d.Size {
			t.Errorf("%s: %+v %v", d.Format, i, err)
		}
	}
	if err := im.CreateOverlays(ctx, h.dir, h.disks); !errors.Is(err, ErrInUse) {
		t.Errorf("overlays in use: %v", err)
	}
	h.kill()
	for _, d := range h.disks {
		must(t, im.Check(ctx, d))
	}
	must(t, im.CreateOverlays(ctx, h.dir, h.disks))
	for range 2 {
		must(t, im.RemoveOverlays(h.dir, h.disks))
	}
	if l, _ := filepath.Glob(filepath.Join(h.dir, "*.hidden.*")); len(l) > 0 {
		t.Errorf("left: %v", l)
	}
}
