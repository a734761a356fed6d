// SDK 0.1 imports a path of its dependency that newer Node versions want with its extension.
export function resolve(specifier, context, next) {
    return next(specifier === "vscode-jsonrpc/node" ? `${specifier}.js` : specifier, context);
}
