package provision

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// libDir is where Debian keeps libraries and loader, below a tree.
const libDir = "usr/lib/x86_64-linux-gnu"

// loader is the program that starts those of a tree.
const loader = "ld-linux-x86-64.so.2"

// wrapper makes bin/NAME, a script that starts tree/usr/bin/NAME with the
// tree's own loader and libraries, whatever the machine has. It returns argv.
// Arguments that are paths below the tree follow their option.
func (c *cache) wrapper(tree, name string, args ...string) ([]string, error) {
	if strings.ContainsAny(tree, "\n'") {
		return nil, fmt.Errorf("the cache folder %q has a character that a script can't hold", tree)
	}
	libs, start := "$L", "$L/"+loader
	if old := "lib/x86_64-linux-gnu"; exists(filepath.Join(tree, old, loader)) { // up to Debian 12 the C library is not below usr
		libs, start = "$T/"+old+":$L", "$T/"+old+"/"+loader
	}
	var text bytes.Buffer
	fmt.Fprintf(&text, "#!/bin/sh\n# Starts %s of an unpacked package set.\nT='%s'\nL=\"$T/%s\"\nexport QEMU_MODULE_DIR=\"$L/qemu\"\n", name, tree, libDir)
	fmt.Fprintf(&text, "exec \"%s\" --library-path \"%s\" --argv0 %s \"$T/usr/bin/%s\"", start, libs, name, name)
	for _, a := range args {
		if strings.HasPrefix(a, "-") {
			fmt.Fprintf(&text, " %s", a)
		} else {
			fmt.Fprintf(&text, " \"$T/%s\"", a)
		}
	}
	text.WriteString(" \"$@\"\n")

	path := c.path("bin", name)
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if !bytes.Equal(old, text.Bytes()) {
		if err := writeFile(path, text.Bytes(), 0o755); err != nil {
			return nil, err
		}
	}
	if _, err := os.Stat(filepath.Join(tree, "usr/bin", name)); err != nil {
		return nil, err
	}
	return []string{path}, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
