package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"
)

// maxFlagColumn is where the text about a flag begins at the latest; behind a longer flag it begins in the next line.
const maxFlagColumn = 30

// The library's templates know no width for flags, and call every value "value".
func init() {
	for _, t := range []*string{&cli.AppHelpTemplate, &cli.CommandHelpTemplate, &cli.SubcommandHelpTemplate} {
		for _, flags := range []string{`{{template "visibleFlagCategoryTemplate" .}}`, `{{template "visibleFlagTemplate" .}}`} {
			*t = strings.ReplaceAll(*t, flags, `{{flags .VisibleFlags}}`)
		}
	}
	cli.HelpPrinter = func(w io.Writer, text string, data any) {
		width := widthOf(w)
		if width == 0 {
			width = screenWidth
		}
		cli.HelpPrinterCustom(w, text, data, map[string]any{
			"wrapAt": func() int { return width },
			"flags":  func(all []cli.Flag) string { return flagHelp(all, width) },
		})
	}
}

// asked translates the ways in which other programs are asked for help and version.
func asked(args []string) []string {
	if len(args) < 2 {
		return args
	}
	switch args[1] {
	case "help":
		if len(args) > 2 && strings.HasPrefix(args[2], "-") {
			return append([]string{args[0]}, args[2:]...)
		}
		return append(slices.Clone(append(args[:1:1], args[2:]...)), "--help")
	case "--version":
		return append([]string{args[0], "version"}, args[2:]...)
	}
	return args
}

// flagHelp is a line for each flag, or more.
func flagHelp(flags []cli.Flag, width int) string {
	var names, texts []string
	column := 0
	for _, f := range flags {
		name, text, _ := strings.Cut(f.String(), "\t")
		name, _, _ = strings.Cut(name, " [ ") // of one that may be given more than once
		name = strings.ReplaceAll(name, " value", " "+placeholder(f))
		names, texts = append(names, name), append(texts, strings.TrimSuffix(text, " (default: false)"))
		if n := utf8.RuneCountInString(name) + 5; n <= maxFlagColumn {
			column = max(column, n)
		}
	}
	if column == 0 {
		column = maxFlagColumn
	}
	var b strings.Builder
	for i, name := range names {
		line := "   " + name
		if utf8.RuneCountInString(line) > column-2 {
			b.WriteString("\n" + line)
			line = ""
		}
		for _, text := range fold(texts[i], max(width-column, 20)) {
			fmt.Fprintf(&b, "\n%-*s%s", column, line, text)
			line = ""
		}
	}
	return b.String()
}

// placeholder is what a flag's value is called unless its text calls it something.
func placeholder(f cli.Flag) string {
	switch f.(type) {
	case *cli.DurationFlag:
		return "TIME"
	case *cli.IntFlag, *cli.Uint64Flag, *cli.Int64Flag, *cli.UintFlag:
		return "N"
	}
	switch name := f.Names()[0]; name {
	case "output":
		return "FORMAT"
	case "limit":
		return "SIZE"
	default:
		return strings.ToUpper(name)
	}
}

// widthOf is a terminal's width; 0 for what is none.
func widthOf(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return 0
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil || width < 20 {
		return screenWidth
	}
	return width
}

// commandName is a command as it is typed.
func commandName(cc *cli.Context) string {
	if cc.Command != nil && cc.Command.HelpName != "" {
		return cc.Command.HelpName
	}
	return cc.App.Name
}
