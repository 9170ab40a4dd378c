package blockrepl

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMediaArgsGolden(t *testing.T) {
	golden(t, "media-args", strings.Join(MediaArgs([]Medium{
		{Name: "install", Path: "/srv/iso, 1/debian.iso", Format: Raw, CDROM: true},
		{Name: "tools", Path: "/srv/tools.qcow2", Format: QCOW2},
	}), "\n")+"\n")
}

func TestCheckMedium(t *testing.T) {
	im, dir := images(t), t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, []byte(content), 0o400))
		return path
	}
	iso := file("a.iso", strings.Repeat("iso", 1024))
	base := file("base.raw", strings.Repeat("b", 1<<20))
	chained := filepath.Join(dir, "chained.qcow2")
	_, err := im.run(t.Context(), "create", "-q", "-f", QCOW2, "-F", Raw, "-b", base, chained)
	must(t, err)
	for _, c := range []struct {
		m    Medium
		want error
	}{
		{Medium{Name: "cd", Path: iso, Format: Raw}, nil},
		{Medium{Name: "cd", Path: filepath.Join(dir, "none"), Format: Raw}, ErrMediumMissing},
		{Medium{Name: "cd", Path: filepath.Join(dir, "no", "folder"), Format: Raw}, ErrMediumMissing},
		{Medium{Name: "cd", Path: dir, Format: Raw}, ErrNotRegular},
		{Medium{Name: "cd", Path: chained, Format: Raw}, ErrWrongFormat},
		{Medium{Name: "cd", Path: iso, Format: QCOW2}, ErrWrongFormat},
		{Medium{Name: "cd", Path: chained, Format: QCOW2}, ErrBackingChain},
	} {
		if _, err := im.CheckMedium(t.Context(), c.m); !errors.Is(err, c.want) || errors.Is(err, ErrMissing) {
			t.Errorf("%s as %s: %v, want %v", c.m.Path, c.m.Format, err, c.want)
		}
	}
}

// TestSumMedium: a sum counts until the file is another one.
func TestSumMedium(t *testing.T) {
	m := Medium{Name: "cd", Path: filepath.Join(t.TempDir(), "cd"), Format: Raw}
	if _, err := SumMedium(t.Context(), m); !errors.Is(err, ErrMediumMissing) {
		t.Errorf("of nothing: %v", err)
	}
	must(t, os.WriteFile(m.Path, []byte("abc"), 0o600))
	sum, err := SumMedium(t.Context(), m)
	must(t, err)
	if want := "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"; sum.SHA256 != want || !sum.Fresh(m) {
		t.Errorf("%s, fresh: %v", sum.SHA256, sum.Fresh(m))
	}
	must(t, os.Rename(m.Path, m.Path+"-old"))
	if sum.Fresh(m) {
		t.Error("fresh when the file is gone")
	}
	must(t, os.WriteFile(m.Path, []byte("abd"), 0o600))
	if sum.Fresh(m) {
		t.Error("fresh when another file is there")
	}
}
