package colo_test

import (
	"errors"
	"testing"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/qmp"
)

func TestFit(t *testing.T) {
	for _, c := range []struct {
		major, minor, micro int
		kvm, tcg            bool
	}{
		{7, 2, 22, false, false}, {9, 2, 4, false, false}, {10, 0, 0, false, false}, {10, 0, 6, false, false}, {10, 0, 7, true, false}, {10, 0, 13, true, false},
		{10, 1, 2, false, false}, {10, 2, 0, true, false}, {11, 0, 0, true, true}, {11, 1, 3, true, true},
	} {
		var v qmp.Version
		v.QEMU.Major, v.QEMU.Minor, v.QEMU.Micro = c.major, c.minor, c.micro
		for accel, fits := range map[string]bool{"kvm": c.kvm, "tcg": c.tcg} {
			err := colo.Fit("qemu", v, accel)
			if (err == nil) != fits || err != nil && !errors.As(err, new(*colo.UnfitError)) {
				t.Errorf("%d.%d.%d, %s: %v", c.major, c.minor, c.micro, accel, err)
			}
		}
	}
}
